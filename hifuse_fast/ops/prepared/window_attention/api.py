"""The contract of the prepared window attention: docstring, validation, choice of backend."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.select import prepared_class
from hifuse_fast.checks import check_count, check_dtype, check_weights
from hifuse_fast.ops.functions.window_attention.api import check_scale, check_sizes
from hifuse_fast.ops.prepared.base import ANY_SIZE, DTYPES, PreparedOp, check_calls, check_operand, check_results


def prepare_window_attention(
    bias_table: Tensor,
    qkv_bias: Tensor | None = None,
    *,
    head_dim: int,
    num_heads: int,
    window_size: int = 7,
    shift_size: int = 0,
    scale: float | None = None,
    dtype: torch.dtype,
    backend: str = "auto",
) -> PreparedOp:
    r"""Attention in shifted windows with relative position bias. Its table and its bias are prepared once.

    .. math:: O = \mathrm{softmax}(scale \cdot Q K^T + B + M) V

    as in `hifuse_fast.ops.window_attention`. The op is called as `op(qkv, out=None)`: [B, H, W, 3C] -> [B, H, W, C],
    C = num_heads * head_dim.

    Args:
        bias_table: [(2 * window_size - 1)^2, num_heads], see `hifuse_fast.ops.window_attention`.
        qkv_bias: [3C] or None, the q, k, v of a padded token. None stands for zeros.
        head_dim: channels of a head; the kernels serve 8 to 128.
        num_heads: attention heads.
        window_size: side of a window in tokens, 1 to 16.
        shift_size: cyclic shift in tokens, 0 <= shift_size < window_size.
        scale: factor on Q K^T; None for head_dim ** -0.5.
        dtype: of the maps, float32, bfloat16, float16 or float64. Table and bias are kept in the dtype of the arithmetic, which
            is float32 for 16-bit maps.
        backend: "auto", "reference", "native", "triton" or "cuda".

    Returns:
        The op. `qkv` and `out` are contiguous, of `dtype`. A call writes to `out`, which shares no memory with `qkv` or the
        packed tensors, and returns it; where `out` is None, it makes a fresh map. No autograd.

    Raises:
        TypeError, ValueError: an argument that does not fit, here or at a call; the message names it.
        BackendError: the backend asked for by name cannot serve this.
        RuntimeError: at a call, under a function transform, or for a tensor that requires a gradient unless under no_grad.

    Source: Liu et al. 2021 (Swin), equation 4; the official HiFuse `Global_block`.
    """
    num_heads, window_size, shift_size = check_sizes(num_heads, window_size, shift_size)
    head_dim = check_count("head_dim", head_dim)
    check_dtype("dtype", dtype, DTYPES)
    check_weights(bias_table=(bias_table, f"{(2 * window_size - 1) ** 2} {num_heads}"))
    tensors = {"bias_table": bias_table}
    if qkv_bias is not None:
        check_weights(bias_table=(bias_table, "R H"), qkv_bias=(qkv_bias, str(3 * num_heads * head_dim)))
        tensors["qkv_bias"] = qkv_bias
    options: dict[str, Any] = {
        "num_heads": num_heads,
        "head_dim": head_dim,
        "window_size": window_size,
        "shift_size": shift_size,
        "scale": check_scale(scale, head_dim),
    }
    key = (window_size, num_heads, head_dim, "shifted" if shift_size else "")
    cls = prepared_class("prepare_window_attention", backend, key=key, device=bias_table.device, dtype=dtype, **options)
    op: PreparedOp = cls.prepare(tensors, dtype, **options)
    like = bias_table.new_empty(0, dtype=dtype)
    return check_calls(op, partial(_check_call, like=like, channels=num_heads * head_dim), "window_attention")


def _check_call(qkv: Any, out: Any = None, *, like: Tensor, channels: int) -> None:
    """`like`: of the op's dtype and device."""
    check_operand("qkv", qkv, (*ANY_SIZE, 3 * channels), like)
    check_results((*qkv.shape[:3], channels), like, out=out)
