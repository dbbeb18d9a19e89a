"""What the gated concatenations in Triton and in CUDA have in common: their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.ops.prepared.base import Layout, PreparedOp


class GatedConcat(PreparedOp):
    """See `prepare_gated_concat`. Gates and what makes them are float32."""

    filters: Tensor  # [7, 7, 2]
    filter_bias: Tensor
    squeeze: Tensor
    expand: Tensor
    scale: Tensor
    shift: Tensor

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        return PreparedOp.pack({**tensors, "filters": tensors["filters"].permute(1, 2, 0)}, torch.float32)

    @staticmethod
    def layout(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, **options: Any) -> Layout:
        return PreparedOp.layout({**shapes, "filters": (7, 7, 2)}, torch.float32)
