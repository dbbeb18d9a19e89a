"""The linear over maps in CUDA C++: one kernel forward. The backward is composed, see composed.py; its norm is PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.backends.cuda import pointwise
from hifuse_fast.backends.cuda.launch import why_not as why_not_cuda
from hifuse_fast.backends.cuda.product import product
from hifuse_fast.ops.functions.linear import composed
from hifuse_fast.ops.functions.padding import pad_to_multiple


def why_not(*, device: torch.device, dtype: torch.dtype, **_: Any) -> str | None:
    """The reason the CUDA kernels cannot serve this call, or None."""
    return why_not_cuda(device, dtype)


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
        dr, r = dr.float(), (_patches(x) if rows == "patches" else x).float()
        centred = r - r.mean(3, keepdim=True)
        spread = (centred.square().mean(3, keepdim=True) + eps).rsqrt()
        normal, scaled = centred * spread, dr * norm_weight.float()
        dscale = (dr * normal).sum((0, 1, 2)) if needs[3] else None
        dshift = dr.sum((0, 1, 2)) if needs[4] else None
        if not needs[0]:
            return [None, dscale, dshift]
        dr = spread * (scaled - scaled.mean(3, keepdim=True) - normal * (scaled * normal).mean(3, keepdim=True))
        return [(_map_of(dr, x) if rows == "patches" else dr).to(x.dtype), dscale, dshift]

    return composed.backward(
        grad, x, weight, kept=kept, needs=needs, gelu_backward=gelu_backward,
        normalised_rows=lambda: _rows(x, norm_weight, norm_bias, eps, rows, weight.dtype).flatten(0, 2),
        norm_backward=None if norm_weight is None else norm_backward,
    )  # fmt: skip


def _rows(x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float, rows: str, dtype: torch.dtype) -> Tensor:
    """[B, H', W', K] in the dtype of the product, normalised in float32."""
    x = _patches(x) if rows == "patches" else x
    if norm_weight is not None and norm_bias is not None:
        x = F.layer_norm(x.float(), x.shape[3:], norm_weight.float(), norm_bias.float(), eps)
    return x.to(dtype)


def _patches(x: Tensor) -> Tensor:
    """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), 4C], as `hifuse_fast.ops.layer_norm` has them."""
    batch, height, width, channels = x.shape
    x = pad_to_multiple(x, 2).reshape(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels)
    return x.permute(0, 1, 3, 4, 2, 5).flatten(3)


def _map_of(patches: Tensor, x: Tensor) -> Tensor:
    """What `_patches` of a map like x was made of."""
    batch, height, width, channels = x.shape
    parts = patches.reshape(*patches.shape[:3], 2, 2, channels).permute(0, 1, 4, 2, 3, 5)
    return parts.reshape(batch, 2 * patches.shape[1], 2 * patches.shape[2], channels)[:, :height, :width]
