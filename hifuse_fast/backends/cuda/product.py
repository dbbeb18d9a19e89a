"""The product on tensor cores, of linears, MLPs and dense convolutions: the launcher of csrc/cuda/product*."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.cuda.launch import DTYPES, begins_aligned, launch

# As csrc/cuda/product_arguments.h and csrc/arguments.h count them.
SOURCES = ("pixels", "patches", "taps")
NORMS = (None, "row", "pixel")
ACTIVATIONS = ("none", "gelu", "relu")


@dataclass(frozen=True)
class Product:
    """residual + pool(activation(norm(rows) weight^T + bias)), to be written to `out`.

    Args:
        maps: 1 to 3 maps [B, H, W, C_i] of any strides, of one dtype with `weight`, `bias` and `residual`.
        weight: [N, K].
        bias: [N] or None.
        out: [B, H', W', N], contiguous.
        source: the rows: "pixels" of all maps side by side; 2x2 "patches" of a map, as in `hifuse_fast.ops.linear`; or "taps",
            the 9 pixels around one, row by row. Zeros stand for pixels that are not on the map.
        norm: None, "row" or "pixel", of each pixel of a patch.
        norm_weight, norm_bias: [K], scale and shift of the norm; None for ones and zeros.
        eps: of the norm.
        activation: "none", "gelu" or "relu".
        pool: take the mean of the 2x2 patches of the result; H and W are even.
        residual: like `out`, contiguous, or None.
        before: contiguous place for what goes into the activation, or None; not with `pool`.
        image_rows: the rows of an image; None for those of the maps. They decide in which order a result's sum is added
            (csrc/cuda/product_parts.h).
    """

    maps: Sequence[Tensor]
    weight: Tensor
    bias: Tensor | None
    out: Tensor
    source: str = "pixels"
    norm: str | None = None
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    eps: float = 1.0
    activation: str = "none"
    pool: bool = False
    residual: Tensor | None = None
    before: Tensor | None = None
    image_rows: int | None = None


def product(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, out: Tensor, **options: Any) -> Tensor:
    """Compute one `Product`, and return `out`."""
    return products([Product(maps, weight, bias, out, **options)])[0]


def products(calls: Sequence[Product]) -> list[Tensor]:
    """Compute 1 to 3 products of one dtype that do not need each other's results, and return their places for these.

    They are one launch if all their blocks can be on the device at the same time, as those of one image are; else one each. The
    library decides that, and how sums are cut.
    """
    places = [call.out if begins_aligned(call.out) else torch.empty_like(call.out) for call in calls]
    launch(
        "products",
        [size for call in calls for size in _sizes(call)],
        [call.eps for call in calls],
        [tensor for call in calls for tensor in _reads(call)],
        [tensor for call, place in zip(calls, places, strict=True) for tensor in (place, call.before)],
        scratch_of="products_scratch",
    )
    return [call.out if place is call.out else call.out.copy_(place) for call, place in zip(calls, places, strict=True)]


def _sizes(call: Product) -> tuple[int, ...]:
    channels = [x.shape[3] for x in call.maps] + [0] * (3 - len(call.maps))
    return (
        DTYPES[call.weight.dtype], SOURCES.index(call.source), *call.maps[0].shape[:3], *channels, NORMS.index(call.norm),
        len(call.weight), ACTIVATIONS.index(call.activation), int(call.pool), call.image_rows or 0,
    )  # fmt: skip


def _reads(call: Product) -> list[Tensor | None]:
    maps = [x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous() for x in call.maps]
    affine = [
        None if vector is None else vector.to(torch.float32).contiguous() for vector in (call.norm_weight, call.norm_bias)
    ]
    bias = None if call.bias is None else call.bias.contiguous()
    return [*maps, *[None] * (3 - len(maps)), call.weight.contiguous(), bias, *affine, call.residual]
