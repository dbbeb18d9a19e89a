"""The contract of the prepared MLP: docstring, validation, choice of backend."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.select import prepared_class
from hifuse_fast.checks import check_choice, check_dtype, check_weights
from hifuse_fast.ops.prepared import int8
from hifuse_fast.ops.prepared.base import ANY_SIZE, DTYPES, PreparedOp, check_calls, check_operand, check_results

ALGORITHMS = ("auto", "direct")


def prepare_mlp(
    expand: Tensor,
    expand_bias: Tensor,
    project: Tensor,
    project_bias: Tensor,
    *,
    algorithm: str = "auto",
    input_scale: float | None = None,
    hidden_scale: float | None = None,
    dtype: torch.dtype,
    backend: str = "auto",
) -> PreparedOp:
    r"""The two linears of the inverted MLP, packed once. The hidden map is never in memory as a whole.

    .. math:: y = residual + W_3 \, \mathrm{GELU}(W_2 u + b_2) + b_3

    with the exact GELU. The op is called as `op(u, residual=None, out=None)`: [B, H, W, K] -> [B, H, W, N].

    In float32 on the CPU, W_2 is multiplied by Strassen's algorithm where K is a multiple of 32. That has 7/8 of the
    multiply-adds, packed weights 7/4 as large, and errors within the bound in `bounds.py` of the prepared linear.

    Args:
        expand: W_2, [H, K], with the batch norm before it folded in.
        expand_bias: b_2, [H].
        project: W_3, [N, H], with the batch norm after it folded in.
        project_bias: b_3, [N].
        algorithm: of the first product: "auto" (the fastest), or "direct", which is exact to rounding and needs least memory.
        input_scale, hidden_scale: where they are given, both products are of 8-bit integers, with exact sums. u is divided by
            the one and GELU(...) by the other, rounded, and kept within -127 to 127; each row of a weight has a scale of its
            own. GELU is within 2e-5 then. A row of u with a value that is not finite gives NaN. On the CPU, for float32 and
            bfloat16.
        dtype: of the maps, float32 or bfloat16; float16 on GPUs and in the reference, float64 in the reference alone.
        backend: "auto", "reference", "native", "triton" or "cuda".

    Returns:
        The op. `u`, `residual` and `out` are contiguous, of `dtype`; `residual` is of the result's shape. A call
        writes to `out`, which shares no memory with `u`, `residual` or the packed weights, and returns it; where `out` is None,
        it makes a fresh map. No autograd.

    Raises:
        TypeError, ValueError: an argument that does not fit, here or at a call; the message names it.
        BackendError: the backend asked for by name cannot serve this.
        RuntimeError: at a call, under a function transform, or for a tensor that requires a gradient unless under no_grad.

    Source: the official HiFuse `IRMLP`; Strassen 1969.
    """
    check_weights(
        expand=(expand, "H K"), expand_bias=(expand_bias, "H"), project=(project, "N H"), project_bias=(project_bias, "N")
    )
    check_dtype("dtype", dtype, DTYPES)
    tensors = {"expand": expand, "expand_bias": expand_bias, "project": project, "project_bias": project_bias}
    options: dict[str, Any] = {"algorithm": check_choice("algorithm", algorithm, ALGORITHMS)}
    depths = (expand.shape[1], project.shape[1])
    options |= int8.check_scales(dtype, depths, input_scale=input_scale, hidden_scale=hidden_scale)
    key = (expand.shape[1], len(expand), len(project))
    cls = prepared_class("prepare_mlp", backend, key=key, device=expand.device, dtype=dtype, **options)
    op: PreparedOp = cls.prepare(tensors, dtype, **options)
    like = expand.new_empty(0, dtype=dtype)
    return check_calls(op, partial(_check_call, like=like, depth=expand.shape[1], columns=len(project)), "mlp")


def _check_call(u: Any, residual: Any = None, out: Any = None, *, like: Tensor, depth: int, columns: int) -> None:
    """`like`: of the op's dtype and device."""
    check_operand("u", u, (*ANY_SIZE, depth), like)
    check_results((*u.shape[:3], columns), like, residual=residual, out=out)
