"""The prepared window attention over launchers: the function's forward, in the language that a backend's file brings."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from hifuse_fast.ops.prepared.base import Layout, PreparedOp


class WindowAttention(PreparedOp):
    """See `prepare_window_attention`. The table is float32; the bias, a token to the kernel, is of the dtype of the maps."""

    launchers: ClassVar[ModuleType]  #: those of the function, of the backend whose class this is
    bias_table: Tensor

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        dtypes = _dtypes(dtype)
        packed: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            packed |= PreparedOp.pack({name: tensor}, dtypes[name])
        return packed

    @staticmethod
    def layout(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, **options: Any) -> Layout:
        return {name: (shape, _dtypes(dtype)[name]) for name, shape in shapes.items()}

    def __init__(self, tensors: Mapping[str, Tensor], **options: Any) -> None:
        super().__init__(tensors, **options)
        self._named = {name: options[name] for name in ("num_heads", "window_size", "shift_size", "scale")}

    @torch.no_grad()
    def forward(self, qkv: Tensor, out: Tensor | None = None) -> Tensor:
        out = qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3)) if out is None else out
        written: Tensor = self.launchers.write(qkv, self.bias_table, self._buffers.get("qkv_bias"), out, **self._named)
        return written


def _dtypes(dtype: torch.dtype) -> dict[str, torch.dtype]:
    return {"bias_table": torch.promote_types(dtype, torch.float32), "qkv_bias": dtype}
