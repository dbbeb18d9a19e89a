"""The product on tensor cores, of linears, MLPs and dense convolutions: the launcher of csrc/cuda/product*."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hifuse_fast.backends.cuda.launch import DTYPES, begins_aligned, launch

# As csrc/cuda/product_arguments.h and csrc/arguments.h count them.
SOURCES = ("pixels", "patches", "taps")
NORMS = (None, "row", "pixel")
ACTIVATIONS = ("none", "gelu", "relu")


def product(
    maps: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *,
    source: str = "pixels",
    norm: str | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1.0,
    activation: str = "none",
    pool: bool = False,
    residual: Tensor | None = None,
    before: Tensor | None = None,
    image_rows: int | None = None,
) -> Tensor:
    """Write residual + pool(activation(norm(rows) weight^T + bias)) to `out`, and return that.

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
    maps = [x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous() for x in maps]
    batch, height, width = maps[0].shape[:3]
    channels = [x.shape[3] for x in maps] + [0] * (3 - len(maps))
    sizes = (
        DTYPES[weight.dtype], SOURCES.index(source), batch, height, width, *channels, NORMS.index(norm), len(weight),
        ACTIVATIONS.index(activation), int(pool), image_rows or 0,
    )  # fmt: skip
    affine = [None if vector is None else vector.to(torch.float32).contiguous() for vector in (norm_weight, norm_bias)]
    reads = (
        *maps,
        *[None] * (3 - len(maps)),
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        *affine,
        residual,
    )
    into = out if begins_aligned(out) else torch.empty_like(out)
    launch("product", sizes, (eps,), reads, (into, before), scratch_of="product_scratch")
    return out if into is out else out.copy_(into)
