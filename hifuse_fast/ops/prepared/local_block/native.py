"""The local block in the compiled library: C++ on CPU tensors (csrc/cpu/linear.cpp, over rows of csrc/cpu/depthwise.h)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.native.library import why_not_native
from hifuse_fast.backends.tape import call
from hifuse_fast.ops.prepared import int8
from hifuse_fast.ops.prepared.base import PreparedOp

why_not = why_not_native


class LocalBlock(PreparedOp):
    """See `prepare_local_block`."""

    filters: Tensor
    filter_bias: Tensor
    weight: Tensor
    scale: Tensor  # of int8
    bias: Tensor

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        names = ("filters", "filter_bias", "weight", "bias")
        parts = torch.ops.hifuse_fast.pack_local_block(*(tensors[name] for name in names), dtype)
        packed = dict(zip(names, parts, strict=True))
        if options["input_scale"] is not None:
            weight, packed["scale"] = int8.quantise_weight(tensors["weight"], options["input_scale"])
            packed["weight"] = torch.ops.hifuse_fast.pack_int8(weight, 0)
        return packed

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        out = torch.empty_like(x) if out is None else out
        eps, scale = self.options["eps"], self.options["input_scale"]
        if scale is None:
            op = torch.ops.hifuse_fast.local_block_out.default
            call(op, x, self.filters, self.filter_bias, self.weight, self.bias, out, eps)
        else:
            op = torch.ops.hifuse_fast.local_block_int8_out.default
            call(op, x, self.filters, self.filter_bias, self.weight, self.scale, self.bias, out, eps, 1 / scale)
        return out
