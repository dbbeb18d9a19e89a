"""The gated concatenation in the compiled library: C++ on CPU tensors (csrc/cpu/gated_concat.cpp)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.native.library import why_not_native
from hifuse_fast.backends.tape import call
from hifuse_fast.ops.prepared.base import PreparedOp

why_not = why_not_native


class GatedConcat(PreparedOp):
    """See `prepare_gated_concat`."""

    filters: Tensor
    filter_bias: Tensor
    squeeze: Tensor
    expand: Tensor
    scale: Tensor
    shift: Tensor

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        names = ("filters", "filter_bias", "squeeze", "expand", "scale", "shift")
        packed = torch.ops.hifuse_fast.pack_gated_concat(*(tensors[name] for name in names))
        return dict(zip(names, packed, strict=True))

    def forward(self, local_map: Tensor, global_map: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        out = x.new_empty((*x.shape[:3], 3 * x.shape[3])) if out is None else out
        call(
            torch.ops.hifuse_fast.gated_concat_out.default,
            local_map, global_map, x, self.filters, self.filter_bias, self.squeeze, self.expand, self.scale, self.shift, out,
            self.options["double_sigmoid"], self.options["eps"],
        )  # fmt: skip
        return out
