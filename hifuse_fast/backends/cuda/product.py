"""The product on tensor cores, of linears, MLPs and dense convolutions: the launcher of csrc/cuda/product*."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.cuda.launch import DTYPES, begins_aligned, launch, multiprocessors

# As csrc/cuda/product_arguments.h and csrc/arguments.h count them.
SOURCES = ("pixels", "patches", "taps")
NORMS = (None, "row", "pixel")
ACTIVATIONS = ("none", "gelu", "relu")
PIXELS = (1, 4, 9)  # of a row
MOST_PRODUCTS = 3  # of a launch
# Of csrc/cuda/product.cuh: columns of a tile, bytes of a row and of a column that a step takes, blocks of a multiprocessor.
COLUMNS, STEP, AT_ONCE = 96, 64, 2
# A sum is cut into parts where one image has fewer tiles than a large GPU has multiprocessors; each of so many steps or more.
BLOCKS, SHORTEST, MOST = 132, 8, 16


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
        image_rows: the rows of an image; None for those of the maps. They decide in which order a result's sum is added.
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


@dataclass(frozen=True)
class _Cut:
    """How the sums of a product are added: in parts of so many steps, each by a block of its own where they are `apart`."""

    steps_of_part: int
    parts: int
    tiles: int
    apart: bool


def product(maps: Sequence[Tensor], weight: Tensor, bias: Tensor | None, out: Tensor, **options: Any) -> Tensor:
    """Compute one `Product`, and return `out`."""
    return products([Product(maps, weight, bias, out, **options)])[0]


def products(calls: Sequence[Product]) -> list[Tensor]:
    """Compute 1 to 3 products of one dtype that do not need each other's results, and return their places for these.

    They are one launch if all their blocks can be on the device at the same time, as those of one image are; else one each.
    """
    device = calls[0].weight.device
    cuts = [_cut(call) for call in calls]
    if len(calls) > 1 and sum(cut.tiles * (cut.parts if cut.apart else 1) for cut in cuts) > AT_ONCE * multiprocessors(device):
        return [products([call])[0] for call in calls]
    places = [call.out if begins_aligned(call.out) else torch.empty_like(call.out) for call in calls]
    sums = sum(cut.parts * cut.tiles for cut in cuts if cut.apart) * COLUMNS * _rows_of_tile(calls[0].weight)
    room = calls[0].weight.new_empty(sums, dtype=torch.float32) if sums else None
    launch(
        "product",
        [size for call, cut in zip(calls, cuts, strict=True) for size in _sizes(call, cut)],
        [call.eps for call in calls],
        [tensor for call in calls for tensor in _reads(call)],
        [*(tensor for call, place in zip(calls, places, strict=True) for tensor in (place, call.before)), room],
        [None if room is None else _counters(device)],
    )
    return [call.out if place is call.out else call.out.copy_(place) for call, place in zip(calls, places, strict=True)]


def _sizes(call: Product, cut: _Cut) -> tuple[int, ...]:
    channels = [x.shape[3] for x in call.maps] + [0] * (3 - len(call.maps))
    return (
        DTYPES[call.weight.dtype], SOURCES.index(call.source), *call.maps[0].shape[:3], *channels, NORMS.index(call.norm),
        len(call.weight), ACTIVATIONS.index(call.activation), int(call.pool), cut.steps_of_part, int(cut.apart),
    )  # fmt: skip


def _reads(call: Product) -> list[Tensor | None]:
    maps = [x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous() for x in call.maps]
    affine = [
        None if vector is None else vector.to(torch.float32).contiguous() for vector in (call.norm_weight, call.norm_bias)
    ]
    bias = None if call.bias is None else call.bias.contiguous()
    return [*maps, *[None] * (3 - len(maps)), call.weight.contiguous(), bias, *affine, call.residual]


def _cut(call: Product) -> _Cut:
    """How a product is cut.

    Of how many steps a part is depends on the weight and the rows of an image alone, so that a batch does not change the order
    of a sum. Whether parts are apart only changes who adds.
    """
    weight, tile, depth = call.weight, _rows_of_tile(call.weight), STEP // call.weight.itemsize
    rows = (4 if call.pool else 1) * call.out.shape[1] * call.out.shape[2]
    columns = blocks(len(weight), COLUMNS)
    steps = PIXELS[SOURCES.index(call.source)] * sum(blocks(x.shape[3], depth) for x in call.maps)
    wanted = BLOCKS // (columns * blocks(rows if call.image_rows is None else call.image_rows, tile))
    of_part = blocks(steps, max(1, min(wanted, MOST, steps // SHORTEST)))
    parts, tiles = blocks(steps, of_part), columns * blocks(call.out.shape[0] * rows, tile)
    return _Cut(of_part, parts, tiles, parts > 1 and tiles < multiprocessors(weight.device))


def _rows_of_tile(weight: Tensor) -> int:
    return 64 if weight.dtype == torch.float32 else 128


def blocks(length: int, block: int) -> int:
    """How many blocks cover `length`."""
    return (length + block - 1) // block  # of numbers that torch.compile may not know yet: no negative ones


# ---- Counters ----------------------------------------------------------------------------------------------------------------


class _Lent(threading.local):
    counters: Tensor | None = None


_lent = _Lent()


@contextlib.contextmanager
def counted_together(device: torch.device) -> Iterator[None]:
    """Within the block, products of this thread share counters, which are set to zero once. All must be on one stream."""
    before, _lent.counters = _lent.counters, _zeros(device)
    try:
        yield
    finally:
        _lent.counters = before


def _counters(device: torch.device) -> Tensor:
    """A counter for each tile of a launch whose parts are apart. A launch leaves them as it found them, at zero."""
    if torch.compiler.is_compiling() or _lent.counters is None or _lent.counters.device != device:
        return _zeros(device)
    return _lent.counters


def _zeros(device: torch.device) -> Tensor:
    return torch.zeros(MOST_PRODUCTS * multiprocessors(device), dtype=torch.int32, device=device)
