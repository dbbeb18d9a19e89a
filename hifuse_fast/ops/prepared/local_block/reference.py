"""The local block in plain PyTorch: the definition every kernel is tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.ops.prepared.base import PreparedOp, write


class LocalBlock(PreparedOp):
    """See `prepare_local_block`."""

    filters: Tensor
    filter_bias: Tensor
    weight: Tensor
    bias: Tensor

    @torch.no_grad()
    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        channels = self.weight.shape[0]
        mixed = F.conv2d(x.permute(0, 3, 1, 2), self.filters[:, None], self.filter_bias, padding=1, groups=channels)
        normed = F.layer_norm(mixed.permute(0, 2, 3, 1), (channels,), eps=self.options["eps"])
        return write(x + F.gelu(F.linear(normed, self.weight, self.bias)), out)
