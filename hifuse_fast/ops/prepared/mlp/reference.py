"""The prepared MLP in plain PyTorch: the definition every kernel is tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.ops.prepared.base import PreparedOp, write


class Mlp(PreparedOp):
    """See `prepare_mlp`."""

    expand: Tensor
    expand_bias: Tensor
    project: Tensor
    project_bias: Tensor

    @torch.no_grad()
    def forward(self, u: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        x = F.linear(F.gelu(F.linear(u, self.expand, self.expand_bias)), self.project, self.project_bias)
        if residual is not None:
            x = residual + x
        return write(x, out)
