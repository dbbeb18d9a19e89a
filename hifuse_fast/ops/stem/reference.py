"""The stem in plain PyTorch: the definition every kernel is tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.ops.prepared import PreparedOp, write


class Stem(PreparedOp):
    """See `prepare_stem`."""

    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor

    @torch.no_grad()
    def forward(self, images: Tensor, out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        self._check(images)
        local_map, global_map = (self._branch(i, images, None if out is None else out[i]) for i in (0, 1))
        return local_map, global_map

    def _branch(self, i: int, images: Tensor, out: Tensor | None) -> Tensor:
        x = F.conv2d(images, self.weight[i], self.bias[i], stride=4).permute(0, 2, 3, 1)
        return write(F.layer_norm(x, x.shape[-1:], self.scale[i], self.shift[i], self.options["eps"][i]), out)

    def _check(self, images: Tensor) -> None:
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
        in_chans, shape = self.weight.shape[2], list(images.shape)
        if len(shape) != 4 or shape[1] != in_chans or 0 in shape[2:] or shape[2] % 4 or shape[3] % 4:
            raise ValueError(f"images must be [B, {in_chans}, 4H, 4W] with H and W at least 1, got {shape}")
        if images.dtype != self.weight.dtype:
            raise TypeError(f"images must be {self.weight.dtype} as the op was prepared for, got {images.dtype}")
        if images.device != self.weight.device:
            raise ValueError(f"images must be on the op's device, {self.weight.device}, got {images.device}")
