"""Window attention in CUDA C++: the launchers of the kernels in csrc/cuda/window_attention*.

The kernels copy 16 bytes at a time, so they take maps whose channels lie side by side, whose tokens begin at multiples of 16
bytes, and which begin at one themselves. A map that does not is copied first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.cuda.launch import DTYPES, aligned, launch, multiprocessors, scratch
from hifuse_fast.backends.cuda.launch import why_not as why_not_cuda
from hifuse_fast.ops.functions.window_attention import limits

HEAD_DIMS = range(8, 129, 8)


def why_not(*, device: torch.device, dtype: torch.dtype, head_dim: int = 32, dropout_p: float = 0.0, **_: Any) -> str | None:
    """The reason the CUDA kernels cannot serve this call, or None."""
    return limits.why_not(HEAD_DIMS, head_dim, dropout_p) or why_not_cuda(device, dtype)


def forward(
    qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor | None, *, keep: bool, **options: Any
) -> tuple[Tensor, list[Tensor]]:
    """See `hifuse_fast.ops.window_attention`; arguments are validated."""
    out = qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))
    return write(qkv, bias_table, qkv_bias, out, **options), []


def write(
    qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor | None, out: Tensor,
    *, num_heads: int, window_size: int, shift_size: int, scale: float,
) -> Tensor:  # fmt: skip
    """`forward` into `out`, contiguous."""
    qkv, into = aligned(qkv), aligned(out)
    sizes, numbers = _sizes(qkv, num_heads, window_size, shift_size), (scale,)
    launch("window_attention_forward", sizes, numbers, (qkv, _table(bias_table), _padded_token(qkv, qkv_bias)), (into,))
    return out if into is out else out.copy_(into)


def backward(
    grad: Tensor, qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor | None,
    *, kept: Sequence[Tensor], needs: Sequence[bool], num_heads: int, window_size: int, shift_size: int, scale: float,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of qkv in its dtype, and of bias_table and qkv_bias in float32."""
    need_map, need_table = needs[0] or needs[2], needs[1]
    grad, qkv = aligned(grad), aligned(qkv)
    sizes, numbers = _sizes(qkv, num_heads, window_size, shift_size), (scale,)
    dqkv = torch.empty_like(qkv, memory_format=torch.contiguous_format) if need_map else None
    dtable = torch.empty_like(bias_table, dtype=torch.float32, memory_format=torch.contiguous_format) if need_table else None
    dbias = qkv.new_empty(qkv.shape[3], dtype=torch.float32) if needs[2] else None
    reads = (grad, qkv, _table(bias_table), _padded_token(qkv, qkv_bias))
    writes = (dqkv, dtable, dbias, scratch("window_attention_backward_scratch", sizes, numbers, qkv))
    launch("window_attention_backward", sizes, numbers, reads, writes)
    return [dqkv if needs[0] else None, dtable, dbias]


def _sizes(qkv: Tensor, num_heads: int, window_size: int, shift_size: int) -> tuple[int, ...]:
    head_dim = qkv.shape[3] // (3 * num_heads)
    dtype = DTYPES[qkv.dtype]
    return (dtype, *qkv.shape[:3], num_heads, head_dim, window_size, shift_size, multiprocessors(qkv.device))


def _table(bias_table: Tensor) -> Tensor:
    return bias_table.to(torch.float32).contiguous()


def _padded_token(qkv: Tensor, qkv_bias: Tensor | None) -> Tensor | None:
    """q, k, v [3C] of a padded token, in the dtype of the map."""
    return None if qkv_bias is None else aligned(qkv_bias.to(qkv.dtype))
