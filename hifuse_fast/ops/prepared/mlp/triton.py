"""The prepared MLP in Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from hifuse_fast.ops.functions.mlp import triton as mlp
from hifuse_fast.ops.prepared.base import PreparedOp

why_not = mlp.why_not


class Mlp(PreparedOp):
    """See `prepare_mlp`."""

    expand: Tensor
    expand_bias: Tensor
    project: Tensor
    project_bias: Tensor

    @torch.no_grad()
    def forward(self, u: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        return mlp.write(u, self.expand, self.expand_bias, self.project, self.project_bias, residual, out)
