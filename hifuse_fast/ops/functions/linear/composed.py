"""The backward of the linear: two products of the library, between kernels that a backend's file brings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    kept: Sequence[Tensor],
    needs: Sequence[bool],
    gelu_backward: Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]],
    normalised_rows: Callable[[], Tensor],
    norm_backward: Callable[[Tensor], Sequence[Tensor | None]] | None,
) -> list[Tensor | None]:
    """Gradients of x and weight in their dtypes, and of bias, norm_weight and norm_bias in float32.

    Args:
        grad: [B, H', W', N].
        kept: what went into GELU, [rows, N], or nothing where there was none.
        needs: of x, weight, bias, norm_weight, norm_bias, whether the gradient is wanted.
        gelu_backward: of the gradient [rows, N], what went into GELU, and whether the second result is wanted: the gradient of
            what went in, and the sum of that over the rows.
        normalised_rows: makes [rows, K] once more, in the dtype of the product.
        norm_backward: of the gradient of the normalised rows [B, H', W', K], those of x, norm_weight and norm_bias; None where
            there was no norm.
    """
    need_x, need_weight, need_bias, need_scale, need_shift, *_ = needs
    dx, dweight, dbias, dscale, dshift = [None] * 5
    size, grad = grad.shape[:3], grad.reshape(-1, weight.shape[0]).contiguous()
    if kept:
        dz, dbias = gelu_backward(grad, kept[0], need_bias)
    else:
        dz = grad.to(weight.dtype)
        dbias = grad.sum(0, dtype=torch.float32) if need_bias else None
    if need_weight:
        dweight = dz.t() @ normalised_rows()
    if need_x or need_scale or need_shift:
        dr = (dz @ weight).view(*size, weight.shape[1])
        dx, dscale, dshift = (dr.to(x.dtype), None, None) if norm_backward is None else norm_backward(dr)
    return [dx, dweight, dbias, dscale, dshift, None]
