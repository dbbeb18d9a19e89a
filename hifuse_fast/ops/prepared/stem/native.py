"""The stem in the compiled library: C++ on CPU tensors (csrc/cpu/stem.cpp)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.native.library import why_not_native
from hifuse_fast.backends.tape import call
from hifuse_fast.ops.prepared.base import PreparedOp

why_not = why_not_native


class Stem(PreparedOp):
    """See `prepare_stem`."""

    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        names = ("weight", "bias", "scale", "shift")
        packed = torch.ops.hifuse_fast.pack_stem(*(tensors[name] for name in names), dtype)
        return dict(zip(names, packed, strict=True))

    def forward(self, images: Tensor, out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        if out is None:
            batch, _, height, width = images.shape
            shape = (batch, height // 4, width // 4, self.bias.shape[1])
            out = images.new_empty(shape), images.new_empty(shape)
        op, eps = torch.ops.hifuse_fast.stem_out.default, self.options["eps"]
        call(op, images, self.weight, self.bias, self.scale, self.shift, *out, *eps)
        return out
