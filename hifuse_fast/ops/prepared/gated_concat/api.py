"""The contract of the gated concatenation: docstring, validation, choice of backend."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.select import prepared_class
from hifuse_fast.checks import check_dtype, check_eps, check_flag, check_weights
from hifuse_fast.ops.prepared.base import ANY_SIZE, DTYPES, PreparedOp, check_calls, check_operand, check_results


def prepare_gated_concat(
    filters: Tensor,
    filter_bias: Tensor,
    squeeze: Tensor,
    expand: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    double_sigmoid: bool = False,
    eps: float = 1e-6,
    dtype: torch.dtype,
    backend: str = "auto",
) -> PreparedOp:
    r"""Gate the maps of the fusion, put them side by side and normalise them, in one pass.

    .. math::
        l' &= l \cdot \sigma(\mathrm{conv}_{7 \times 7}([\max_c l, \mathrm{mean}_c l]) + filter\_bias) \\
        g' &= g \cdot \sigma(\mathrm{se}(\max_{hw} g) + \mathrm{se}(\mathrm{mean}_{hw} g)), \quad
        \mathrm{se}(a) = expand \, \mathrm{ReLU}(squeeze \, a) \\
        z &= \mathrm{norm}([g', l', x]) \cdot scale + shift

    with zero padding and norm(x) = (x - mean) / sqrt(var + eps) over the 3C channels. Scale and shift cannot be folded, because
    a convolution with zero padding follows. The op is called as `op(local_map, global_map, x, out=None)`, with maps
    [B, H, W, C], and returns z, [B, H, W, 3C].

    Args:
        filters: [2, 7, 7], one for the map of largest values and one for the map of means.
        filter_bias: [1].
        squeeze: [S, C].
        expand: [C, S].
        scale, shift: [3C].
        double_sigmoid: whether the gate of g is sigma(sigma(.)), as in the official code from before 2024-01-16.
        eps: of the norm.
        dtype: of the maps, float32 or bfloat16; float16 on GPUs and in the reference, float64 in the reference alone.
        backend: "auto", "reference", "native", "triton" or "cuda".

    Returns:
        The op. Maps and `out` are contiguous, of `dtype`. A call writes to `out`, which shares no memory with a map or the
        packed tensors, and returns it; where `out` is None, it makes a fresh map. No autograd.

    Raises:
        TypeError, ValueError: an argument that does not fit, here or at a call; the message names it.
        BackendError: the backend asked for by name cannot serve this.
        RuntimeError: at a call, under a function transform, or for a tensor that requires a gradient unless under no_grad.

    Source: Huo et al. 2024 (HiFuse), section 3.3; the official `HFF_block`.
    """
    check_weights(
        filters=(filters, "2 7 7"),
        filter_bias=(filter_bias, "1"),
        squeeze=(squeeze, "S C"),
        expand=(expand, "C S"),
        scale=(scale, "3C"),
        shift=(shift, "3C"),
    )
    check_dtype("dtype", dtype, DTYPES)
    options: dict[str, Any] = {
        "double_sigmoid": check_flag("double_sigmoid", double_sigmoid),
        "eps": check_eps("eps", eps),
    }
    tensors = {
        "filters": filters,
        "filter_bias": filter_bias,
        "squeeze": squeeze,
        "expand": expand,
        "scale": scale,
        "shift": shift,
    }
    key = (*expand.shape, "double_sigmoid" if double_sigmoid else "")
    call = {"key": key, "device": filters.device, "dtype": dtype, "width": len(expand)}
    cls = prepared_class("prepare_gated_concat", backend, **call, **options)
    op: PreparedOp = cls.prepare(tensors, dtype, **options)
    return check_calls(
        op, partial(_check_call, like=filters.new_empty(0, dtype=dtype), channels=len(expand)), "max_mean", "concat_norm"
    )


def _check_call(local_map: Any, global_map: Any, x: Any, out: Any = None, *, like: Tensor, channels: int) -> None:
    """`like`: of the op's dtype and device."""
    check_operand("local_map", local_map, (*ANY_SIZE, channels), like)
    check_operand("global_map", global_map, local_map.shape, like)
    check_operand("x", x, local_map.shape, like)
    check_results((*local_map.shape[:3], 3 * channels), like, out=out)
