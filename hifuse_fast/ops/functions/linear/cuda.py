"""The linear over maps in CUDA C++: one kernel forward. The backward is composed, see composed.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hifuse_fast.backends.cuda import pointwise
from hifuse_fast.backends.cuda.product import product
from hifuse_fast.ops.functions.layer_norm import cuda as layer_norm
from hifuse_fast.ops.functions.linear import composed

why_not = layer_norm.why_not  # of the width that is normalised, 1 for none


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None,
    residual: Tensor | None, *, keep: bool, eps: float, rows: str, activation: str,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """See `hifuse_fast.ops.linear`; arguments are validated, the product is in the dtype of `weight`.

    It keeps what goes into GELU, [rows, N].
    """
    if x.dtype != weight.dtype:  # under autocast: a map with a large mean is normalised before it is rounded
        x, rows, norm_weight, norm_bias = _rows(x, norm_weight, norm_bias, eps, rows, weight.dtype), "pixels", None, None
    half = 2 if rows == "patches" else 1
    size = (x.shape[0], (x.shape[1] + half - 1) // half, (x.shape[2] + half - 1) // half)
    out = weight.new_empty((*size, len(weight)))
    z = weight.new_empty((size[0] * size[1] * size[2], len(weight))) if keep and activation == "gelu" else None
    added = residual.contiguous() if residual is not None and residual.dtype == weight.dtype else None
    product(
        [x], weight, bias, out, source=rows, norm=None if norm_weight is None else "row", norm_weight=norm_weight,
        norm_bias=norm_bias, eps=eps, activation=activation, residual=added, before=z,
    )  # fmt: skip
    return out if residual is None or added is not None else residual + out, [] if z is None else [z]


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None,
    residual: None, *, kept: Sequence[Tensor], needs: Sequence[bool], eps: float, rows: str, activation: str,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of x and weight in their dtypes, and of bias, norm_weight and norm_bias in float32."""

    def gelu_backward(grad: Tensor, z: Tensor, need_bias: bool) -> tuple[Tensor, Tensor | None]:
        dz = pointwise.gelu_backward(grad, z)[0]
        return dz, dz.sum(0, dtype=torch.float32) if need_bias else None

    def norm_backward(dr: Tensor) -> Sequence[Tensor | None]:
        assert norm_weight is not None
        assert norm_bias is not None
        asked = (needs[0], *needs[3:5])
        return layer_norm.backward(dr, x, norm_weight, norm_bias, kept=(), needs=asked, eps=eps, rows=rows, dtype=dr.dtype)

    return composed.backward(
        grad, x, weight, kept=kept, needs=needs, gelu_backward=gelu_backward,
        normalised_rows=lambda: _rows(x, norm_weight, norm_bias, eps, rows, weight.dtype).flatten(0, 2),
        norm_backward=None if norm_weight is None else norm_backward,
    )  # fmt: skip


def _rows(x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float, rows: str, dtype: torch.dtype) -> Tensor:
    """[B, H', W', K] in the dtype of the product, normalised."""
    if norm_weight is not None and norm_bias is not None:
        return layer_norm.write(x, norm_weight, norm_bias, eps, rows, dtype)
    return x.to(dtype)
