"""The MLP in the compiled library: C++ on CPU tensors (csrc/cpu/mlp.cpp)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.native.packing import pack_factors, pack_floats, pack_matrix, why_not_native
from hifuse_fast.backends.native.tape import call
from hifuse_fast.ops.prepared.base import PreparedOp

why_not = why_not_native

HIDDEN = 192  # kHidden of csrc/cpu/kernels.h: hidden units that exist at a time, in whose blocks `project` is packed


class Mlp(PreparedOp):
    """See `prepare_mlp`."""

    expand: Tensor
    expand_bias: Tensor
    project: Tensor
    project_bias: Tensor

    @staticmethod
    def by_strassen(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> bool:
        """Whether `expand` is packed for Strassen's product."""
        return options["algorithm"] == "auto" and dtype == torch.float32 and tensors["expand"].shape[1] % 32 == 0

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        expand, strassen = tensors["expand"], Mlp.by_strassen(tensors, dtype, **options)
        return {
            "expand": pack_factors(expand) if strassen else pack_matrix(expand, dtype),
            "expand_bias": pack_floats(tensors["expand_bias"]),
            "project": pack_matrix(tensors["project"], dtype, HIDDEN),
            "project_bias": pack_floats(tensors["project_bias"]),
        }

    def forward(self, u: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        out = u.new_empty((*u.shape[:3], len(self.project_bias))) if out is None else out
        written: Tensor = call(
            torch.ops.hifuse_fast.mlp.default, u, self.expand, self.expand_bias, self.project, self.project_bias, residual, out
        )
        return written
