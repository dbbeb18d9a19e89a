"""The prepared window attention in CUDA C++: the launch of the function's forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.ops.functions.window_attention import cuda as window_attention
from hifuse_fast.ops.prepared.base import Layout, PreparedOp

why_not = window_attention.why_not


class WindowAttention(PreparedOp):
    """See `prepare_window_attention`. The table is float32; the bias, a token to the kernel, is of the dtype of the maps."""

    bias_table: Tensor

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        dtypes = {"bias_table": torch.float32, "qkv_bias": dtype}
        packed: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            packed |= PreparedOp.pack({name: tensor}, dtypes[name])
        return packed

    @staticmethod
    def layout(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, **options: Any) -> Layout:
        dtypes = {"bias_table": torch.float32, "qkv_bias": dtype}
        return {name: (shape, dtypes[name]) for name, shape in shapes.items()}

    def __init__(self, tensors: Mapping[str, Tensor], **options: Any) -> None:
        super().__init__(tensors, **options)
        self._named = {name: options[name] for name in ("num_heads", "window_size", "shift_size", "scale")}

    @torch.no_grad()
    def forward(self, qkv: Tensor, out: Tensor | None = None) -> Tensor:
        out = qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3)) if out is None else out
        return window_attention.write(qkv, self.bias_table, self._buffers.get("qkv_bias"), out, **self._named)
