"""Window attention in the compiled library: C++ on CPU tensors (csrc/cpu/window_attention_*.cpp)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.ops.functions.window_attention import limits

HEAD_DIMS = range(8, 129)


def why_not(*, device: torch.device, dtype: torch.dtype, head_dim: int = 32, dropout_p: float = 0.0, **_: Any) -> str | None:
    """The reason the compiled kernel cannot serve this call, or None."""
    if device.type not in ("cpu", "meta"):
        return f"there is no native kernel for {device.type} tensors yet"
    return limits.why_not(HEAD_DIMS, head_dim, dropout_p)


def forward(
    qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor | None, *, keep: bool, **options: Any
) -> tuple[Tensor, list[Tensor]]:
    """See `hifuse_fast.ops.window_attention`; arguments are validated."""
    table, padding = _in_arithmetic(qkv, bias_table), _in_arithmetic(qkv, qkv_bias)
    return torch.ops.hifuse_fast.window_attention(qkv, table, padding, **options), []


def backward(
    grad: Tensor, qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor | None,
    *, kept: Sequence[Tensor], needs: Sequence[bool], **options: Any,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of qkv in its dtype, and of bias_table and qkv_bias in that of the arithmetic."""
    table, padding = _in_arithmetic(qkv, bias_table), _in_arithmetic(qkv, qkv_bias)
    need_map, need_table = needs[0] or needs[2], needs[1]
    grads = torch.ops.hifuse_fast.window_attention_backward(
        grad, qkv, table, padding, **options, need_map=need_map, need_table=need_table
    )
    return [
        grads[0] if needs[0] else None,
        grads[1] if need_table else None,
        grads[2] if needs[2] else None,
    ]


def _in_arithmetic(qkv: Tensor, tensor: Tensor | None) -> Tensor | None:
    """Tables and biases go to the kernel contiguous and in the type of its arithmetic."""
    if tensor is None:
        return None
    dtype = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    return (tensor if tensor.dtype == dtype else tensor.to(dtype)).contiguous()
