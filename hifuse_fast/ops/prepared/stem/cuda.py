"""The stem in CUDA C++: the patches of the images as rows, one product over them for both branches, and their layer norms."""

from __future__ import annotations

from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor

from hifuse_fast.backends.cuda import ends
from hifuse_fast.backends.cuda.product import product
from hifuse_fast.backends.tape import kept
from hifuse_fast.ops.functions.layer_norm import cuda as layer_norm
from hifuse_fast.ops.prepared.stem import launched

why_not = layer_norm.why_not


class Stem(launched.Stem):
    """See `prepare_stem`. As the frozen network calls it, images may be float32 too, and smaller than `out` says: zeros stand
    below and to the right of them."""

    layer_norm: ClassVar[ModuleType] = layer_norm

    @torch.no_grad()
    def forward(self, images: Tensor, out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        eps, dtype, channels = self.options["eps"], self.weight.dtype, self.scale.shape[1]
        if out is None:
            shape = (images.shape[0], images.shape[2] // 4, images.shape[3] // 4, channels)
            out = images.new_empty(shape, dtype=dtype), images.new_empty(shape, dtype=dtype)
        named = {"local_map": out[0], "global_map": out[1], "local_eps": eps[0], "global_eps": eps[1]}
        if kept("stem", images=images, **self.packed(), **named):
            return out
        _, height, width, _ = out[0].shape
        rows = ends.stem_patches(images, height, width, dtype)
        both = product([rows], self.weight, self.bias, rows.new_empty((*rows.shape[:3], 2 * channels)))
        for i in (0, 1):
            half = both[..., i * channels : (i + 1) * channels]
            layer_norm.write(half, self.scale[i], self.shift[i], eps[i], "pixels", dtype, out[i])
        return out
