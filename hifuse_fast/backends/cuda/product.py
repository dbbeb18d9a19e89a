"""The product on tensor cores, of linears, MLPs and dense convolutions: the launcher of csrc/cuda/product*."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hifuse_fast.backends.cuda.launch import DTYPES, begins_aligned, launch, multiprocessors

# As csrc/cuda/product_arguments.h and csrc/arguments.h count them.
SOURCES = ("pixels", "patches", "taps")
NORMS = (None, "row", "pixel")
ACTIVATIONS = ("none", "gelu", "relu")
PIXELS = (1, 4, 9)  # of a row
# Of csrc/cuda/product.cuh: columns of a tile, and bytes of a row and of a column that a step takes.
COLUMNS, STEP = 96, 64
# A sum is cut into parts where one image has fewer tiles than a large GPU has multiprocessors; each of so many steps or more.
BLOCKS, SHORTEST, MOST = 132, 8, 16


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
        image_rows: the rows of an image; None for those of the maps. They decide in which order a result's sum is added.
    """
    maps = [x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous() for x in maps]
    batch, height, width = maps[0].shape[:3]
    channels = [x.shape[3] for x in maps] + [0] * (3 - len(maps))
    of_part, room = _parts(
        [x.shape[3] for x in maps] * PIXELS[SOURCES.index(source)], weight, out.shape[0],
        (4 if pool else 1) * out.shape[1] * out.shape[2], image_rows,
    )  # fmt: skip
    sizes = (
        DTYPES[weight.dtype], SOURCES.index(source), batch, height, width, *channels, NORMS.index(norm), len(weight),
        ACTIVATIONS.index(activation), int(pool), of_part,
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
    launch("product", sizes, (eps,), reads, (into, before, room))
    return out if into is out else out.copy_(into)


def _parts(segments: Sequence[int], weight: Tensor, batch: int, rows: int, image_rows: int | None) -> tuple[int, Tensor | None]:
    """Of how many steps a part of a sum is, and the place for the parts' sums if a block shall add each.

    The first depends on the weight and the rows of an image alone, so that a batch does not change the order of a sum; the
    second only changes who adds.
    """
    columns, depth = blocks(len(weight), COLUMNS), STEP // weight.itemsize
    tile = 64 if weight.dtype == torch.float32 else 128
    steps = sum(blocks(channels, depth) for channels in segments)
    wanted = BLOCKS // (columns * blocks(rows if image_rows is None else image_rows, tile))
    of_part = blocks(steps, max(1, min(wanted, MOST, steps // SHORTEST)))
    count, tiles = blocks(steps, of_part), columns * blocks(batch * rows, tile)
    if count == 1 or tiles >= multiprocessors(weight.device):
        return of_part, None
    return of_part, weight.new_empty(count * tiles * tile * COLUMNS, dtype=torch.float32)


def blocks(length: int, block: int) -> int:
    """How many blocks cover `length`."""
    return (length + block - 1) // block  # of numbers that torch.compile may not know yet: no negative ones
