"""The contract of the prepared linear: docstring, validation, choice of backend."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.select import prepared_class
from hifuse_fast.checks import check_choice, check_dtype, check_eps, check_flag, check_weights
from hifuse_fast.ops.prepared import int8
from hifuse_fast.ops.prepared.base import ANY_SIZE, DTYPES, PreparedOp, check_calls, check_operand, check_results

ROWS = ("pixels", "patches")
NORMS = ("row", "pixel")
NORM_WORDS = {None: "", "row": "norm", "pixel": "pixel-norm"}  # in the keys of tables
ACTIVATIONS = ("none", "gelu", "relu")
ALGORITHMS = ("auto", "direct")


def prepare_linear(
    weight: Tensor,
    bias: Tensor,
    *,
    rows: str = "pixels",
    norm: str | None = None,
    eps: float = 1e-5,
    activation: str = "none",
    pool: bool = False,
    algorithm: str = "auto",
    input_scale: float | None = None,
    dtype: torch.dtype,
    backend: str = "auto",
) -> PreparedOp:
    r"""A linear over the rows of maps, packed once: the norm before it and all that follows it are one pass.

    .. math:: y = residual + \mathrm{pool}(\mathrm{act}(\mathrm{norm}(rows) W^T + b))

    The op is called as `op(*maps, residual=None, out=None)`, with maps [B, H, W, C_i], and returns [B, H', W', N]:

    - rows="pixels": 1 to 3 maps of one size, the channels of a pixel side by side, K = C_1 + C_2 + C_3;
    - rows="patches": the 2x2 patches of one map with even H and W, pixels in the order (row, column) = (0, 0), (1, 0), (0, 1),
      (1, 1), K = 4 C; H' = H / 2, W' = W / 2.

    norm(x) is (x - mean) / sqrt(var + eps). It has no scale and shift; fold those into the linear.

    Args:
        weight: [N, K].
        bias: [N].
        rows: "pixels" or "patches".
        norm: None, "row" (over all K channels of a row), or with patches "pixel" (over the C channels of each pixel).
        eps: of the norm.
        activation: "none", "gelu" (the exact one, with erf) or "relu".
        pool: average the 2x2 patches of the result; pixels only, even H and W; H' = H / 2, W' = W / 2.
        algorithm: "auto" or "direct". In float32 on the CPU, "auto" takes Strassen's product where K is at least 384 and a
            multiple of 32, and N is a multiple of 64. That has 7/8 of the multiply-adds, weights 7/4 as large, and errors
            within a bound of its own, in `bounds.py`.
        input_scale: where it is given, the product is of 8-bit integers, with exact sums. norm(rows) is divided by it, rounded,
            and kept within -127 to 127; each row of the weight has a scale of its own. It is the largest magnitude that
            norm(rows) should keep, over 127. A row with a value that is not finite gives NaN. GELU is within 2e-5 then. On the
            CPU, for float32 and bfloat16.
        dtype: of the maps, float32 or bfloat16; float16 on GPUs and in the reference, float64 in the reference alone.
        backend: "auto", "reference", "native", "triton" or "cuda".

    Returns:
        The op. Its maps, `residual` and `out` are contiguous, of `dtype`; `residual` is of the result's shape. A call
        writes to `out`, which shares no memory with a map, `residual` or the packed weights, and returns it; where `out` is
        None, it makes a fresh map. No autograd.

    Raises:
        TypeError, ValueError: an argument that does not fit, here or at a call; the message names it.
        BackendError: the backend asked for by name cannot serve this.
        RuntimeError: at a call, under a function transform, or for a tensor that requires a gradient unless under no_grad.

    Source: the linears of the official HiFuse `Global_block`, `PatchMerging` and `HFF_block`; Strassen 1969.
    """
    check_weights(weight=(weight, "N K"), bias=(bias, "N"))
    check_dtype("dtype", dtype, DTYPES)
    check_choice("rows", rows, ROWS)
    if norm is not None:
        check_choice("norm", norm, NORMS)
    check_choice("activation", activation, ACTIVATIONS)
    if norm == "pixel" and rows == "pixels":
        raise ValueError("norm='pixel' is for rows='patches'; over pixels it is norm='row'")
    if check_flag("pool", pool) and rows == "patches":
        raise ValueError("pool is for rows='pixels', got rows='patches'")
    if rows == "patches" and weight.shape[1] % 4:
        raise ValueError(f"weight must be [N, 4 C] with rows='patches', got {list(weight.shape)}")
    options = {"rows": rows, "norm": norm, "eps": check_eps("eps", eps), "activation": activation, "pool": pool}
    options["algorithm"] = check_choice("algorithm", algorithm, ALGORITHMS)
    options |= int8.check_scales(dtype, (weight.shape[1],), input_scale=input_scale)
    normed_width = 1 if norm is None else weight.shape[1]
    after = ("" if activation == "none" else activation, "pool" if pool else "")
    key = (weight.shape[1], len(weight), rows, NORM_WORDS[norm], *after)
    cls = prepared_class("prepare_linear", backend, key=key, device=weight.device, dtype=dtype, width=normed_width, **options)
    op: PreparedOp = cls.prepare({"weight": weight, "bias": bias}, dtype, **options)
    depth = weight.shape[1] // 4 if rows == "patches" else weight.shape[1]
    like = weight.new_empty(0, dtype=dtype)
    return check_calls(
        op, partial(_check_call, like=like, depth=depth, columns=len(weight), patches=rows == "patches", pool=pool), "linear"
    )


def _check_call(
    *maps: Any,
    residual: Any = None,
    out: Any = None,
    like: Tensor,
    depth: int,
    columns: int,
    patches: bool,
    pool: bool,
) -> None:
    """`depth`: the channels of all maps; `like`: of the op's dtype and device."""
    if not 1 <= len(maps) <= (1 if patches else 3):
        raise ValueError(f"maps must be {'1 map' if patches else '1 to 3 maps'}, got {len(maps)}")
    size: Sequence[int | None] = ANY_SIZE
    for i, x in enumerate(maps):
        check_operand(f"maps[{i}]", x, (*size, depth if len(maps) == 1 else None), like)
        size = x.shape[:3]
    if sum(x.shape[3] for x in maps) != depth:
        raise ValueError(f"maps must have {depth} channels together, got {[x.shape[3] for x in maps]}")
    batch, height, width = maps[0].shape[:3]
    if patches or pool:
        if height % 2 or width % 2:
            raise ValueError(f"maps[0] must have even H and W, got {list(maps[0].shape)}")
        height, width = height // 2, width // 2
    check_results((batch, height, width, columns), like, residual=residual, out=out)
