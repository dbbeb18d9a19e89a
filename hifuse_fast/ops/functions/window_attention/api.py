"""The contract of window attention: docstring, validation, choice of backend."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.select import select
from hifuse_fast.checks import check_count, check_dense, check_integer
from hifuse_fast.ops.functions.fused import Fused, Product
from hifuse_fast.ops.functions.window_attention import reference

MAX_WINDOW_SIZE = 16
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def window_attention(
    qkv: Tensor,
    bias_table: Tensor,
    *,
    num_heads: int,
    window_size: int = 7,
    shift_size: int = 0,
    qkv_bias: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    r"""Shifted-window multi-head self-attention with relative position bias, from map to map in one pass.

    The map is padded at the right and the bottom to a multiple of `window_size`, rolled by `-shift_size`, and cut into windows
    of N = window_size^2 tokens. In each window and head

    .. math:: O = \mathrm{softmax}(scale \cdot Q K^T + B + M) V

    B[i, j] is the row of `bias_table` for the offset of query i from key j. M is -100 where the shift brought tokens of
    different regions of the map into one window, and 0 elsewhere; as in the official code, this also holds where one window
    covers the whole map. The kernels take weights below 2^-126 for zero; the weights of masked keys are smaller.
    The result is put back in place: merged, rolled back, cropped.

    Args:
        qkv: [B, H, W, 3C], channels in the order (q, k, v), then head, then head_dim; any strides; float32, bfloat16,
            float16 (both with float32 arithmetic in the kernels) or float64.
        bias_table: [(2 * window_size - 1)^2, num_heads], row (dy + window_size - 1) * (2 * window_size - 1) + dx +
            window_size - 1 for the offset (dy, dx) = query - key.
        num_heads: divides C.
        window_size: side of a window in tokens, 1 to 16.
        shift_size: cyclic shift in tokens, 0 <= shift_size < window_size.
        qkv_bias: [3C] or None, the q, k, v of a padded token. That is the bias of the qkv linear, because padding comes before
            the linear. Padded tokens take part as keys and are not masked. None stands for zeros.
        scale: factor on Q K^T; None for head_dim ** -0.5.
        dropout_p: probability of dropping an attention weight; the kernels serve 0 only, the reference any.
        backend: "auto", "reference", "native", "triton" or "cuda".

    Returns:
        [B, H, W, C], contiguous, the dtype of `qkv`.

    Raises:
        TypeError, ValueError: an argument that does not fit; the message names it, what it was and what was expected.
        BackendError: the backend asked for by name cannot serve the call.

    Source: Liu et al. 2021 (Swin), equation 4; the official HiFuse `Global_block` from its padding to its crop, without the
    two linears around it.
    """
    num_heads, window_size, shift_size = check_sizes(num_heads, window_size, shift_size)
    scale = _check_tensors(qkv, bias_table, qkv_bias, num_heads, window_size, scale)
    dropout_p = _check_dropout(dropout_p)
    options: dict[str, Any] = {
        "num_heads": num_heads,
        "window_size": window_size,
        "shift_size": shift_size,
        "scale": scale,
    }
    head_dim = qkv.size(3) // (3 * num_heads)
    key = (window_size, num_heads, head_dim, "shifted" if shift_size else "")
    kernels = select(
        "window_attention", backend, key=key, device=qkv.device, dtype=qkv.dtype, head_dim=head_dim, dropout_p=dropout_p
    )
    if kernels is None:
        return reference.window_attention(qkv, bias_table, qkv_bias=qkv_bias, dropout_p=dropout_p, **options)
    return _FUSED(kernels, (qkv, bias_table, qkv_bias), options)[0]


def _definition(qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor | None, **options: Any) -> Tensor:
    return reference.window_attention(qkv, bias_table, qkv_bias=qkv_bias, **options)


def _products(qkv: Tensor, *_: Any, num_heads: int, window_size: int, **__: Any) -> list[Product]:
    batch, height, width, channels = qkv.shape
    windows = batch * -(-height // window_size) * -(-width // window_size)
    flops = 2 * windows * window_size**4 * (channels // 3)
    return [Product(flops, (0, 2), (0, 2)), Product(flops, (0, 1, 2), (0, 2))]


_FUSED = Fused(
    "window_attention",
    "Tensor qkv, Tensor bias_table, Tensor? qkv_bias",
    "int num_heads, int window_size, int shift_size, float scale",
    _definition,
    products=_products,
)


def check_sizes(num_heads: int, window_size: int, shift_size: int) -> tuple[int, int, int]:
    """The three as ints in their ranges."""
    num_heads = check_count("num_heads", num_heads)
    window_size = check_integer("window_size", window_size)
    shift_size = check_integer("shift_size", shift_size)
    if not 1 <= window_size <= MAX_WINDOW_SIZE:
        raise ValueError(f"window_size must be from 1 to {MAX_WINDOW_SIZE}, got {window_size}")
    if not 0 <= shift_size < window_size:
        raise ValueError(f"shift_size must be from 0 to window_size - 1 = {window_size - 1}, got {shift_size}")
    return num_heads, window_size, shift_size


def _check_tensors(
    qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor | None, num_heads: int, window_size: int, scale: float | None
) -> float:
    """Check shapes, dtypes and devices; return the scale."""
    for name, tensor in (("qkv", qkv), ("bias_table", bias_table), ("qkv_bias", qkv_bias)):
        if not isinstance(tensor, Tensor) and not (name == "qkv_bias" and tensor is None):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor is not None:
            check_dense(name, tensor)
    if qkv.dim() != 4:
        raise ValueError(f"qkv must be [B, H, W, 3C], got {qkv.dim()} dimensions: {list(qkv.shape)}")
    if qkv.dtype not in DTYPES:
        raise TypeError(f"qkv must be float32, bfloat16, float16 or float64, got {qkv.dtype}")
    channels = qkv.size(3)
    if channels == 0 or channels % (3 * num_heads):
        raise ValueError(f"qkv must have 3 * num_heads * head_dim channels; {channels} is no multiple of 3 * {num_heads}")
    if qkv.numel() == 0 and 0 in qkv.shape[1:3]:
        raise ValueError(f"qkv must have a map of at least 1 x 1 tokens, got {list(qkv.shape)}")
    table = [(2 * window_size - 1) ** 2, num_heads]
    if list(bias_table.shape) != table:
        raise ValueError(f"bias_table must be [(2 * window_size - 1)^2, num_heads] = {table}, got {list(bias_table.shape)}")
    _check_alike("bias_table", bias_table, qkv)
    if qkv_bias is not None:
        if list(qkv_bias.shape) != [channels]:
            raise ValueError(f"qkv_bias must be [3C] = [{channels}], got {list(qkv_bias.shape)}")
        _check_alike("qkv_bias", qkv_bias, qkv)
    return check_scale(scale, channels // (3 * num_heads))


def _check_alike(name: str, tensor: Tensor, qkv: Tensor) -> None:
    if tensor.device != qkv.device:
        raise ValueError(f"{name} must be on the device of qkv, {qkv.device}, got {tensor.device}")
    if tensor.dtype not in (qkv.dtype, torch.float32):  # a float32 parameter under autocast
        raise TypeError(f"{name} must be {qkv.dtype} like qkv, or float32, got {tensor.dtype}")


def check_scale(scale: float | None, head_dim: int) -> float:
    """`scale`, or where that is None the usual one."""
    if scale is None:
        return float(head_dim**-0.5)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number or None, got {scale!r}")
    return float(scale)


def _check_dropout(dropout_p: float) -> float:
    if not isinstance(dropout_p, (int, float)) or not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"dropout_p must be from 0 to 1, got {dropout_p!r}")
    return float(dropout_p)
