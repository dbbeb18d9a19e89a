"""The prepared window attention in the compiled library: C++ on CPU tensors (csrc/cpu/window_attention_*.cpp)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.tape import call
from hifuse_fast.ops.functions.window_attention import native as window_attention
from hifuse_fast.ops.prepared.base import PreparedOp

why_not = window_attention.why_not


class WindowAttention(PreparedOp):
    """See `prepare_window_attention`. Table and bias are in the type of the arithmetic."""

    bias_table: Tensor

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        return PreparedOp.pack(tensors, torch.promote_types(dtype, torch.float32))

    def __init__(self, tensors: Mapping[str, Tensor], **options: Any) -> None:
        super().__init__(tensors, **options)
        self._geometry = tuple(options[name] for name in ("num_heads", "window_size", "shift_size", "scale"))

    def forward(self, qkv: Tensor, out: Tensor | None = None) -> Tensor:
        out = qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3)) if out is None else out
        op = torch.ops.hifuse_fast.window_attention_out.default
        call(op, qkv, self.bias_table, self._buffers.get("qkv_bias"), out, *self._geometry)
        return out
