"""The linear over maps in the compiled library: C++ on CPU tensors (csrc/cpu/linear.cpp)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.native.algorithms import ALGORITHMS
from hifuse_fast.backends.native.library import why_not_native
from hifuse_fast.backends.native.tape import call
from hifuse_fast.ops.prepared.base import PreparedOp

why_not = why_not_native

_ROWS = {"pixels": 0, "patches": 1}  # the enumerations of csrc/arguments.h
_NORMS = {None: 0, "row": 1, "pixel": 2}
_ACTIVATIONS = {"none": 0, "gelu": 1, "relu": 2}
DEEP = 384  # from which Strassen's product gains more than its sums cost


class Linear(PreparedOp):
    """See `prepare_linear`."""

    weight: Tensor
    bias: Tensor

    @staticmethod
    def resolve(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Any]:
        columns, depth = tensors["weight"].shape
        deep = dtype == torch.float32 and depth >= DEEP and depth % 32 == columns % 64 == 0
        return {**options, "algorithm": "strassen" if options["algorithm"] == "auto" and deep else "direct"}

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        algorithm = ALGORITHMS[options["algorithm"]]
        weight, bias = torch.ops.hifuse_fast.pack_linear(tensors["weight"], tensors["bias"], dtype, algorithm)
        return {"weight": weight, "bias": bias}

    def __init__(self, tensors: Mapping[str, Tensor], **options: Any) -> None:
        super().__init__(tensors, **options)
        o = options
        rows, norm, activation, algorithm = (
            _ROWS[o["rows"]], _NORMS[o["norm"]], _ACTIVATIONS[o["activation"]], ALGORITHMS[o["algorithm"]]
        )  # fmt: skip
        self._numbers = rows, norm, o["eps"], activation, o["pool"], algorithm

    def forward(self, *maps: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        if out is None:
            batch, height, width, _ = maps[0].shape
            half = 2 if self.options["rows"] == "patches" or self.options["pool"] else 1
            out = maps[0].new_empty(batch, height // half, width // half, len(self.bias))
        call(torch.ops.hifuse_fast.linear_out.default, maps, self.weight, self.bias, residual, out, *self._numbers)
        return out
