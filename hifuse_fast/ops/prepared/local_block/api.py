"""The contract of the local block: docstring, validation, choice of backend."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.select import prepared_class
from hifuse_fast.checks import check_dtype, check_eps, check_weights
from hifuse_fast.ops.prepared import int8
from hifuse_fast.ops.prepared.base import ANY_SIZE, DTYPES, PreparedOp, check_calls, check_operand, check_results


def prepare_local_block(
    filters: Tensor,
    filter_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-6,
    input_scale: float | None = None,
    dtype: torch.dtype,
    backend: str = "auto",
) -> PreparedOp:
    r"""A block of the local branch, packed once, in one pass.

    .. math:: y = x + \mathrm{GELU}(W \, \mathrm{norm}(\mathrm{dwconv}_{3 \times 3}(x) + filter\_bias) + b)

    with zero padding, norm(x) = (x - mean) / sqrt(var + eps) over the channels, and the exact GELU. The op is called as
    `op(x, out=None)`: [B, H, W, C] -> [B, H, W, C].

    Args:
        filters: [C, 3, 3], one of each channel.
        filter_bias: [C].
        weight: [C, C], with the scale of the norm folded in.
        bias: [C], with the shift of the norm folded in.
        eps: of the norm.
        input_scale: where it is given, the product with W is of 8-bit integers, as that of `prepare_linear` is: the normed
            convolution is divided by it, rounded, and kept within -127 to 127. On the CPU, for float32 and bfloat16.
        dtype: of the maps, float32 or bfloat16; float16 on GPUs and in the reference, float64 in the reference alone.
        backend: "auto", "reference", "native", "triton" or "cuda".

    Returns:
        The op. `x` and `out` are contiguous, of `dtype`. A call writes to `out`, which shares no memory with `x` or the packed
        weights, and returns it; where `out` is None, it makes a fresh map. No autograd.

    Raises:
        TypeError, ValueError: an argument that does not fit, here or at a call; the message names it.
        BackendError: the backend asked for by name cannot serve this.
        RuntimeError: at a call, under a function transform, or for a tensor that requires a gradient unless under no_grad.

    Source: the official HiFuse `Local_block`.
    """
    check_weights(filters=(filters, "C 3 3"), filter_bias=(filter_bias, "C"), weight=(weight, "C C"), bias=(bias, "C"))
    check_dtype("dtype", dtype, DTYPES)
    options: dict[str, Any] = {"eps": check_eps("eps", eps)}
    options |= int8.check_scales(dtype, (weight.shape[1],), input_scale=input_scale)
    tensors = {"filters": filters, "filter_bias": filter_bias, "weight": weight, "bias": bias}
    call = {"key": (len(weight),), "device": weight.device, "dtype": dtype, "channels": len(weight)}
    cls = prepared_class("prepare_local_block", backend, **call, **options)
    op: PreparedOp = cls.prepare(tensors, dtype, **options)
    return check_calls(
        op, partial(_check_call, like=weight.new_empty(0, dtype=dtype), channels=len(weight)), "depthwise_norm", "linear"
    )


def _check_call(x: Any, out: Any = None, *, like: Tensor, channels: int) -> None:
    """`like`: of the op's dtype and device."""
    check_operand("x", x, (*ANY_SIZE, channels), like)
    check_results(x.shape, like, out=out)
