"""The prepared window attention in plain PyTorch: the definition every kernel is tested against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.ops.functions.window_attention.reference import window_attention
from hifuse_fast.ops.prepared.base import Layout, PreparedOp, write


class WindowAttention(PreparedOp):
    """See `prepare_window_attention`."""

    bias_table: Tensor

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        return PreparedOp.pack(tensors, torch.promote_types(dtype, torch.float32))

    @staticmethod
    def layout(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, **options: Any) -> Layout:
        return PreparedOp.layout(shapes, torch.promote_types(dtype, torch.float32))

    def __init__(self, tensors: Mapping[str, Tensor], **options: Any) -> None:
        super().__init__(tensors, **options)
        self._named = {name: options[name] for name in ("num_heads", "window_size", "shift_size", "scale")}

    @torch.no_grad()
    def forward(self, qkv: Tensor, out: Tensor | None = None) -> Tensor:
        return write(
            window_attention(qkv, self.bias_table, qkv_bias=self._buffers.get("qkv_bias"), dropout_p=0.0, **self._named), out
        )
