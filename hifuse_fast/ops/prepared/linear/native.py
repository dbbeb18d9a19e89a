"""The linear over maps in the compiled library: C++ on CPU tensors (csrc/cpu/linear.cpp)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.native.packing import pack_factors, pack_floats, pack_matrix, why_not_native
from hifuse_fast.backends.native.tape import call
from hifuse_fast.ops.prepared.base import PreparedOp

why_not = why_not_native

_ROWS = {"pixels": 0, "patches": 1}  # the enumerations of csrc/cpu/kernels.h
_NORMS = {None: 0, "row": 1, "pixel": 2}
_ACTIVATIONS = {"none": 0, "gelu": 1, "relu": 2}
DEEP = 384  # from which Strassen's product gains more than its sums cost


class Linear(PreparedOp):
    """See `prepare_linear`."""

    weight: Tensor
    bias: Tensor

    @staticmethod
    def by_strassen(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> bool:
        """Whether the weight is packed for Strassen's product."""
        columns, depth = tensors["weight"].shape
        return options["algorithm"] == "auto" and dtype == torch.float32 and depth >= DEEP and depth % 32 == columns % 64 == 0

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        weight = tensors["weight"]
        packed = pack_factors(weight) if Linear.by_strassen(tensors, dtype, **options) else pack_matrix(weight, dtype)
        return {"weight": packed, "bias": pack_floats(tensors["bias"])}

    def forward(self, *maps: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        o = self.options
        if out is None:
            batch, height, width, _ = maps[0].shape
            half = 2 if o["rows"] == "patches" or o["pool"] else 1
            out = maps[0].new_empty(batch, height // half, width // half, len(self.bias))
        written: Tensor = call(
            torch.ops.hifuse_fast.linear.default,
            maps, self.weight, self.bias, residual, out, _ROWS[o["rows"]], _NORMS[o["norm"]], o["eps"],
            _ACTIVATIONS[o["activation"]], o["pool"],
        )  # fmt: skip
        return written
