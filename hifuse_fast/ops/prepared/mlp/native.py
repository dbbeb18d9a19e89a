"""The MLP in the compiled library: C++ on CPU tensors (csrc/cpu/mlp.cpp)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.native.algorithms import ALGORITHMS
from hifuse_fast.backends.native.library import lib, why_not_native
from hifuse_fast.backends.tape import call
from hifuse_fast.ops.prepared import int8
from hifuse_fast.ops.prepared.base import PreparedOp

why_not = why_not_native

_FLOAT = ("expand", "expand_bias", "project", "project_bias")
_INT8 = ("expand", "expand_scale", "expand_bias", "project", "project_scale", "project_bias")


class Mlp(PreparedOp):
    """See `prepare_mlp`."""

    expand: Tensor
    expand_scale: Tensor  # of int8
    expand_bias: Tensor
    project: Tensor
    project_scale: Tensor  # of int8
    project_bias: Tensor

    @staticmethod
    def resolve(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Any]:
        if options["input_scale"] is not None:
            return PreparedOp.resolve(tensors, dtype, **options)
        fits = dtype == torch.float32 and tensors["expand"].shape[1] % 32 == 0
        return {**options, "algorithm": "strassen" if options["algorithm"] == "auto" and fits else "direct"}

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        if options["input_scale"] is not None:
            return _pack_int8(tensors, options["input_scale"], options["hidden_scale"])
        algorithm = ALGORITHMS[options["algorithm"]]
        packed = torch.ops.hifuse_fast.pack_mlp(*(tensors[name] for name in _FLOAT), dtype, algorithm)
        return dict(zip(_FLOAT, packed, strict=True))

    def __init__(self, tensors: Mapping[str, Tensor], **options: Any) -> None:
        super().__init__(tensors, **options)
        o = options
        self._int8 = o["input_scale"] is not None
        self._numbers = (1 / o["input_scale"], 1 / o["hidden_scale"]) if self._int8 else (ALGORITHMS[o["algorithm"]],)

    def forward(self, u: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        out = u.new_empty((*u.shape[:3], len(self.project_bias))) if out is None else out
        if self._int8:
            call(
                torch.ops.hifuse_fast.mlp_int8_out.default,
                u, self.expand, self.expand_scale, self.expand_bias, self.project, self.project_scale, self.project_bias,
                residual, out, *self._numbers,
            )  # fmt: skip
        else:
            call(
                torch.ops.hifuse_fast.mlp_out.default,
                u, self.expand, self.expand_bias, self.project, self.project_bias, residual, out, *self._numbers,
            )  # fmt: skip
        return out


def _pack_int8(tensors: Mapping[str, Tensor], input_scale: float, hidden_scale: float) -> dict[str, Tensor]:
    assert lib is not None  # why_not asked
    expand, expand_scale = int8.quantise_weight(tensors["expand"], input_scale)
    project, project_scale = int8.quantise_weight(tensors["project"], hidden_scale)
    biases = (tensors[name].detach().to(torch.float32, copy=True).contiguous() for name in ("expand_bias", "project_bias"))
    pack = torch.ops.hifuse_fast.pack_int8
    first, second = pack(expand, 0), pack(project, lib.mlp_block)
    expand_bias, project_bias = biases
    return dict(zip(_INT8, (first, expand_scale, expand_bias, second, project_scale, project_bias), strict=True))
