"""The MLP in the compiled library: C++ on CPU tensors (csrc/cpu/mlp.cpp)."""

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


class Mlp(PreparedOp):
    """See `prepare_mlp`."""

    expand: Tensor
    expand_bias: Tensor
    project: Tensor
    project_bias: Tensor

    @staticmethod
    def resolve(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Any]:
        fits = dtype == torch.float32 and tensors["expand"].shape[1] % 32 == 0
        return {**options, "algorithm": "strassen" if options["algorithm"] == "auto" and fits else "direct"}

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        names = ("expand", "expand_bias", "project", "project_bias")
        algorithm = ALGORITHMS[options["algorithm"]]
        packed = torch.ops.hifuse_fast.pack_mlp(*(tensors[name] for name in names), dtype, algorithm)
        return dict(zip(names, packed, strict=True))

    def __init__(self, tensors: Mapping[str, Tensor], **options: Any) -> None:
        super().__init__(tensors, **options)
        self._algorithm = ALGORITHMS[options["algorithm"]]

    def forward(self, u: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        out = u.new_empty((*u.shape[:3], len(self.project_bias))) if out is None else out
        call(
            torch.ops.hifuse_fast.mlp_out.default,
            u, self.expand, self.expand_bias, self.project, self.project_bias, residual, out, self._algorithm,
        )  # fmt: skip
        return out
