"""The prepared window attention in CUDA C++."""

from __future__ import annotations

from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor

from hifuse_fast.backends.tape import kept
from hifuse_fast.ops.functions.window_attention import cuda
from hifuse_fast.ops.prepared.window_attention import launched

why_not = cuda.why_not


class WindowAttention(launched.WindowAttention):
    launchers: ClassVar[ModuleType] = cuda

    @torch.no_grad()
    def forward(self, qkv: Tensor, out: Tensor | None = None) -> Tensor:
        bias = self._buffers.get("qkv_bias")
        if out is not None and kept(
            "window_attention", qkv=qkv, bias_table=self.bias_table, qkv_bias=bias, out=out, **self._named
        ):  # fmt: skip
            return out
        return super().forward(qkv, out)
