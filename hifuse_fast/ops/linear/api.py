"""The contract of the linear: docstring, validation, choice of backend, autograd; the function over maps, the prepared op."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hifuse_fast import backends
from hifuse_fast.checks import check_choice, check_dtype, check_eps, check_flag, check_map, check_parameter, check_weights
from hifuse_fast.ops.layer_norm.reference import patches
from hifuse_fast.ops.linear import reference
from hifuse_fast.ops.prepared import ANY_SIZE, DTYPES, PreparedOp, check_calls, check_operand, check_results

ROWS = ("pixels", "patches")
NORMS = ("row", "pixel")
ACTIVATIONS = ("none", "gelu", "relu")
ALGORITHMS = ("auto", "direct")
FUNCTION_ACTIVATIONS = ("none", "gelu")
MIXED = (torch.float32, torch.bfloat16, torch.float16)  # what autocast casts; float64 it leaves as it is


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    rows: str = "pixels",
    activation: str = "none",
    residual: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""A linear over the rows of a map, with the layer normalisation before it and what follows it.

    .. math:: y = residual + \mathrm{act}(\mathrm{LN}(rows(x)) W^T + b)

    The rows are the C channels of each pixel, or with rows="patches" the 4C of each 2x2 patch, as in
    `hifuse_fast.ops.layer_norm`: pixels in the order (row, column) = (0, 0), (1, 0), (0, 1), (1, 1), the map zero-padded at the
    right and the bottom to an even size. K is their width; H', W' are H, W, or with patches ceil(H / 2), ceil(W / 2).

    Args:
        x: [B, H, W, C], any strides; floating.
        weight: [N, K].
        bias: [N] or None.
        norm_weight, norm_bias: [K], scale and shift of the layer normalisation of each row; None, both, for no normalisation.
        eps: of the normalisation.
        rows: "pixels" or "patches".
        activation: "none" or "gelu" (the exact one, with erf).
        residual: [B, H', W', N] or None.
        backend: "auto", "reference", "native" or "triton".

        `weight` and `bias` are of the dtype of `x`; `norm_weight`, `norm_bias` and `residual` of that, or float32. Under
        autocast each of `x`, `weight`, `bias` and `residual` may be float32, bfloat16 or float16.

    Returns:
        [B, H', W', N], of the dtype of the product (that of `weight`, or autocast's), promoted with the residual's.

    Raises:
        TypeError, ValueError: an argument that does not fit; the message names it, what it was and what was expected.
        BackendError: the backend asked for by name cannot serve the call.

    Source: the official HiFuse: `qkv`, `proj` and `fc1` of its `Global_block`, `pwconv` of its `Local_block`, `PatchMerging`.
    """
    eps, rows = check_eps("eps", eps), check_choice("rows", rows, ROWS)
    check_choice("activation", activation, FUNCTION_ACTIVATIONS)
    check_map("x", x)
    autocast = None if x.dtype == torch.float64 else backends.autocast_dtype(x.device)
    dtypes = (x.dtype,) if autocast is None else MIXED
    width = x.shape[3] * (4 if rows == "patches" else 1)
    if isinstance(weight, Tensor) and (weight.dim() != 2 or weight.shape[1] != width or weight.shape[0] == 0):
        raise ValueError(f"weight must be [N, {width}] with rows={rows!r}, got {list(weight.shape)}")
    check_parameter("weight", weight, getattr(weight, "shape", ()), x, dtypes)
    if bias is not None:
        check_parameter("bias", bias, weight.shape[:1], x, dtypes)
    if (norm_weight is None) != (norm_bias is None):
        raise ValueError("norm_weight and norm_bias must be given both or neither")
    if norm_weight is not None:
        check_parameter("norm_weight", norm_weight, [width], x)
        check_parameter("norm_bias", norm_bias, [width], x)
    if residual is not None:
        batch, height, wide = ((n + 1) // 2 if rows == "patches" and i else n for i, n in enumerate(x.shape[:3]))
        check_parameter("residual", residual, [batch, height, wide, len(weight)], x, None if autocast is None else MIXED)

    dtype = autocast or x.dtype
    normed_width = 1 if norm_weight is None else width
    after = ("" if activation == "none" else activation, "" if residual is None else "residual")
    key = (width, len(weight), rows, "" if norm_weight is None else "norm", *after)
    kernels = backends.select("linear", backend, key=key, device=x.device, dtype=dtype, width=normed_width)
    if kernels is None:
        return reference.linear(
            x, weight, bias, norm_weight, norm_bias, residual, eps=eps, rows=rows, activation=activation
        )  # fmt: skip
    if norm_weight is None and rows == "patches":
        x, rows = patches(x), "pixels"  # the network has no such call: the kernels gather only what they normalise
    tensors = (x, weight.to(dtype), None if bias is None else bias.to(dtype), norm_weight, norm_bias, residual)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        out: Tensor = _Linear.apply(*tensors, kernels, eps, rows, activation)
        return out
    forwarded: Tensor = kernels.forward(*tensors, eps, rows, activation, False)[0]
    return forwarded


class _Linear(torch.autograd.Function):
    """Saves the inputs, and for GELU what goes into it; the normalised rows are computed again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        residual: Tensor | None,
        kernels: ModuleType,
        eps: float,
        rows: str,
        activation: str,
    ) -> Tensor:
        keep = activation == "gelu" and any(ctx.needs_input_grad[:5])
        out: Tensor
        out, z = kernels.forward(x, weight, bias, norm_weight, norm_bias, residual, eps, rows, activation, keep)
        ctx.save_for_backward(x, weight, norm_weight, norm_bias, z if keep else None)
        ctx.kernels, ctx.eps, ctx.rows = kernels, eps, rows
        ctx.residual_dtype = None if residual is None else residual.dtype
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, norm_weight, norm_bias, z = ctx.saved_tensors
        need_x, need_weight, need_bias, need_scale, need_shift, need_residual = ctx.needs_input_grad[:6]
        found: Any = (None,) * 5
        if need_x or need_weight or need_bias or need_scale or need_shift:
            found = ctx.kernels.backward(
                grad, z, x, weight, norm_weight, norm_bias, ctx.eps, ctx.rows,
                need_x or need_scale or need_shift, need_weight, need_bias,
            )  # fmt: skip
        dx, dweight, dbias, dscale, dshift = found
        return (
            dx if need_x else None,
            dweight if need_weight else None,
            dbias.to(weight.dtype) if need_bias else None,
            dscale.to(norm_weight.dtype) if need_scale else None,
            dshift.to(norm_bias.dtype) if need_shift else None,
            grad.to(ctx.residual_dtype) if need_residual else None,
            None, None, None, None,
        )  # fmt: skip


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
    dtype: torch.dtype,
    backend: str = "auto",
) -> PreparedOp:
    r"""A linear over the rows of maps, packed once, with the norm before it and what follows it in one pass.

    .. math:: y = residual + \mathrm{pool}(\mathrm{act}(\mathrm{norm}(rows) W^T + b))

    The result is called as `op(*maps, residual=None, out=None)`, with maps [B, H, W, C_i], and returns [B, H', W', N]:

    - rows="pixels": 1 to 3 maps of one size, the channels of a pixel side by side, K = C_1 + C_2 + C_3;
    - rows="patches": the 2x2 patches of one map with even H and W, pixels in the order (row, column) = (0, 0), (1, 0), (0, 1),
      (1, 1), K = 4 C; H' = H / 2, W' = W / 2.

    norm(x) is (x - mean) / sqrt(var + eps), without scale and shift: fold those into the linear.

    Args:
        weight: [N, K].
        bias: [N].
        rows: "pixels" or "patches".
        norm: None, "row" (over all K channels of a row), or with patches "pixel" (over the C channels of each pixel).
        eps: of the norm.
        activation: "none", "gelu" (the exact one, with erf) or "relu".
        pool: average the 2x2 patches of the result; pixels only, even H and W; H' = H / 2, W' = W / 2.
        algorithm: "auto", or "direct". In float32 on the CPU "auto" multiplies by Strassen's where K is at least 384 and a
            multiple of 32, and N of 64: 7/8 of the multiply-adds, weights 7/4 as large, errors by `testing.STRASSEN_BOUND`.
        dtype: of the maps, float32 or bfloat16; float16 in Triton and the reference, float64 in the reference alone.
        backend: "auto", "reference", "native" or "triton".

    Returns:
        The op. Its maps, `residual` and `out` are contiguous, of `dtype`; `residual` is of the result's shape. It writes to
        `out` and returns it, a fresh map where that is None. No autograd.

    Raises:
        TypeError, ValueError: an argument that does not fit, here or at a call; the message names it.
        BackendError: the backend asked for by name cannot serve this.

    Source: the official HiFuse `Global_block`, `PatchMerging` and `HFF_block`, without what is between their linears;
    Strassen 1969.
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
    normed_width = 1 if norm is None else weight.shape[1]
    cls = backends.prepared_class("linear", backend, device=weight.device, dtype=dtype, width=normed_width, **options)
    op: PreparedOp = cls(cls.pack({"weight": weight, "bias": bias}, dtype, **options), **options)
    depth = weight.shape[1] // 4 if rows == "patches" else weight.shape[1]
    like = weight.new_empty(0, dtype=dtype)
    return check_calls(
        op, partial(_check_call, like=like, depth=depth, columns=len(weight), patches=rows == "patches", pool=pool)
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
