"""The prepared MLP in CUDA C++."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.cuda import sm90
from hifuse_fast.backends.tape import kept
from hifuse_fast.ops.functions.mlp import cuda as mlp
from hifuse_fast.ops.prepared.base import PreparedOp


def why_not(*, input_scale: float | None = None, **call: Any) -> str | None:
    return mlp.why_not(**call) if input_scale is None else "there is no CUDA kernel in int8"


class Mlp(PreparedOp):
    """See `prepare_mlp`."""

    expand: Tensor
    expand_bias: Tensor
    project: Tensor
    project_bias: Tensor

    @torch.no_grad()
    def forward(self, u: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        out = u.new_empty((*u.shape[:3], len(self.project))) if out is None else out
        rows = sm90.mlp_rows(self.expand, self.project)
        name, options = ("mlp_sm90", {"sm90_rows": rows}) if rows else ("mlp", {})
        if kept(name, u=u, **self.packed(), residual=residual, out=out, **options):
            return out
        if sm90.takes(rows, u):
            return sm90.mlp(u, self.expand, self.expand_bias, self.project, self.project_bias, residual, out)
        return mlp.write(u, self.expand, self.expand_bias, self.project, self.project_bias, residual, out)
