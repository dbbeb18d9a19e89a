"""The linear over maps in the compiled library: C++ on CPU tensors (csrc/cpu/linear.cpp)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.native.algorithms import ALGORITHMS
from hifuse_fast.backends.native.library import why_not_native
from hifuse_fast.backends.tape import call
from hifuse_fast.ops.prepared import int8
from hifuse_fast.ops.prepared.base import PreparedOp

why_not = why_not_native

_ROWS = {"pixels": 0, "patches": 1}  # the enumerations of csrc/arguments.h
_NORMS = {None: 0, "row": 1, "pixel": 2}
_ACTIVATIONS = {"none": 0, "gelu": 1, "relu": 2}
DEEP = 384  # from which Strassen's product gains more than its sums cost


class Linear(PreparedOp):
    """See `prepare_linear`."""

    weight: Tensor
    scale: Tensor  # of int8
    bias: Tensor

    @staticmethod
    def resolve(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Any]:
        if options["input_scale"] is not None:
            return PreparedOp.resolve(tensors, dtype, **options)
        columns, depth = tensors["weight"].shape
        deep = dtype == torch.float32 and depth >= DEEP and depth % 32 == columns % 64 == 0
        return {**options, "algorithm": "strassen" if options["algorithm"] == "auto" and deep else "direct"}

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        if options["input_scale"] is not None:
            weight, scale = int8.quantise_weight(tensors["weight"], options["input_scale"])
            bias = tensors["bias"].detach().to(torch.float32, copy=True)
            return {"weight": torch.ops.hifuse_fast.pack_int8(weight, 0), "scale": scale, "bias": bias.contiguous()}
        algorithm = ALGORITHMS[options["algorithm"]]
        weight, bias = torch.ops.hifuse_fast.pack_linear(tensors["weight"], tensors["bias"], dtype, algorithm)
        return {"weight": weight, "bias": bias}

    def __init__(self, tensors: Mapping[str, Tensor], **options: Any) -> None:
        super().__init__(tensors, **options)
        o = options
        numbers = _ROWS[o["rows"]], _NORMS[o["norm"]], o["eps"], _ACTIVATIONS[o["activation"]], o["pool"]
        self._int8 = o["input_scale"] is not None
        self._numbers = (*numbers, 1 / o["input_scale"] if self._int8 else ALGORITHMS[o["algorithm"]])

    def forward(self, *maps: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        if out is None:
            batch, height, width, _ = maps[0].shape
            half = 2 if self.options["rows"] == "patches" or self.options["pool"] else 1
            out = maps[0].new_empty(batch, height // half, width // half, len(self.bias))
        if self._int8:
            op = torch.ops.hifuse_fast.linear_int8_out.default
            call(op, maps, self.weight, self.scale, self.bias, residual, out, *self._numbers)
        else:
            call(torch.ops.hifuse_fast.linear_out.default, maps, self.weight, self.bias, residual, out, *self._numbers)
        return out
