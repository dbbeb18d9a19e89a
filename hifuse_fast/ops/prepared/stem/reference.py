"""The stem in plain PyTorch: the definition every kernel is tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.ops.prepared.base import PreparedOp, write


class Stem(PreparedOp):
    """See `prepare_stem`."""

    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor

    @torch.no_grad()
    def forward(self, images: Tensor, out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        local_map, global_map = (self._branch(i, images, None if out is None else out[i]) for i in (0, 1))
        return local_map, global_map

    def _branch(self, i: int, images: Tensor, out: Tensor | None) -> Tensor:
        x = F.conv2d(images, self.weight[i], self.bias[i], stride=4).permute(0, 2, 3, 1)
        return write(F.layer_norm(x, x.shape[-1:], self.scale[i], self.shift[i], self.options["eps"][i]), out)
