"""The MLP in plain PyTorch: the definition every kernel is tested against, of the function and the prepared op."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.ops.prepared import PreparedOp, write


def mlp(u: Tensor, expand_weight: Tensor, project_weight: Tensor) -> Tensor:
    """See `hifuse_fast.ops.mlp`; arguments are validated.

    Two 1x1 convolutions, as in the official code: on a CPU they are the faster ones too.
    """
    hidden = F.gelu(F.conv2d(u.permute(0, 3, 1, 2), expand_weight[:, :, None, None]).permute(0, 2, 3, 1))
    return F.conv2d(hidden.permute(0, 3, 1, 2), project_weight[:, :, None, None]).permute(0, 2, 3, 1)


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
