"""The contract of the linear: docstring, validation, choice of backend, autograd."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.select import autocast_dtype, select
from hifuse_fast.checks import check_choice, check_eps, check_map, check_parameter
from hifuse_fast.ops.functions.layer_norm.reference import patches
from hifuse_fast.ops.functions.linear import reference

ROWS = ("pixels", "patches")
ACTIVATIONS = ("none", "gelu")
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
    r"""A linear over the rows of a map, with the layer normalisation before it and the activation and sum after it.

    .. math:: y = residual + \mathrm{act}(\mathrm{LN}(rows(x)) W^T + b)

    A row is the C channels of a pixel. With rows="patches" it is the 4C channels of a 2x2 patch, as in
    `hifuse_fast.ops.layer_norm`: its pixels in the order (row, column) = (0, 0), (1, 0), (0, 1), (1, 1), the map zero-padded at
    the right and the bottom to an even size. K is the width of a row. H', W' are H, W; with patches ceil(H / 2), ceil(W / 2).

    Args:
        x: [B, H, W, C], any strides; floating.
        weight: [N, K].
        bias: [N] or None.
        norm_weight, norm_bias: [K], scale and shift of the layer normalisation of each row; both None for no normalisation.
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
    check_choice("activation", activation, ACTIVATIONS)
    check_map("x", x)
    autocast = None if x.dtype == torch.float64 else autocast_dtype(x.device)
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
    kernels = select("linear", backend, key=key, device=x.device, dtype=dtype, width=normed_width)
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
    """Saves the inputs, and where there is a GELU its input. The backward computes the normalised rows again."""

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
