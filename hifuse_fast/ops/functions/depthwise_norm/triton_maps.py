"""Maps in the registers of a program: where its pixels lie, how they are loaded, convolved, normalised and written.

A thread has a run of RUN neighbouring pixels, and a program PIXELS such runs with all their channels, or a slice of them.
Channels are padded to a power of two, or to that and its half, if this is less: they are one chunk or two (CHUNKS). A pixel of
each run is a tuple of tiles [PIXELS, LANES, .] by chunk, whose last side are the channels of one thread, and a row is a tuple
of such pixels. So a sum over channels begins within a thread, and nothing moves between threads to be added to another chunk.
Parameters are loaded as tiles of a pixel's shape, to lie as the map does. Products and sums are float32.

WHOLE says that no tile reaches beyond the map, so that only the pixels around it have to be looked at.
"""

# Triton knows no starred tuples, and a constant is no less an argument; mypy takes an empty tuple for one that stays empty.
# ruff: noqa: RUF005, SIM300
# mypy: disable-error-code="assignment,misc"

from __future__ import annotations

import triton
import triton.language as tl

from hifuse_fast.backends.triton.device import INTERPRETED

# ---- Places ----------------------------------------------------------------------------------------------------------


@triton.jit
def place(tile, height, width, PIXELS: tl.constexpr, RUN: tl.constexpr, ROWS: tl.constexpr):
    """Image (int64), first row and runs' first pixels [PIXELS, 1, 1] (int32) of a tile; neighbouring tiles lie side by side."""
    strips = tl.cdiv(width, PIXELS * RUN)
    stacks = tl.cdiv(height, ROWS)
    rest = tile // strips
    x = tile % strips * (PIXELS * RUN) + RUN * tl.arange(0, PIXELS)[:, None, None]
    return (rest // stacks).to(tl.int64), rest % stacks * ROWS, x


@triton.jit
def _on_map(i, size):
    """Whether 0 <= i < size, in one comparison: as an unsigned number -1 is large."""
    return i.to(tl.uint32) < size


@triton.jit
def row_on_map(y, height, STEP: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr):
    """Whether row y = top + STEP is on the map; known for those of a tile that is WHOLE."""
    return True if WHOLE and STEP >= 0 and STEP < ROWS else _on_map(y, height)


@triton.jit
def _kept(x, i, width, on_map, WHOLE: tl.constexpr, RUN: tl.constexpr):
    """Whether the pixels x + i of a row are on the map; known for those of a run that is WHOLE."""
    return on_map if WHOLE and i >= 0 and i < RUN else _on_map(x + i, width) & on_map


@triton.jit
def columns_of(first, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr, LANES: tl.constexpr):
    """The channels [1, LANES, .] of each chunk, from `first` on."""
    lane = tl.arange(0, LANES)[None, :, None]
    columns = ()
    for chunk in tl.static_range(CHUNKS):
        columns = columns + (
            first
            + chunk * BLOCK_C
            + lane * (BLOCK_C // LANES >> chunk)
            + tl.arange(0, BLOCK_C // LANES >> chunk)[None, None, :],
        )
    return columns


@triton.jit
def pointers_to(ptr, place, columns, CHUNKS: tl.constexpr):
    """ptr + place [PIXELS, 1, 1] + the channels, by chunk."""
    pointers = ()
    for chunk in tl.static_range(CHUNKS):
        pointers = pointers + (ptr + (place + columns[chunk]),)
    return pointers


@triton.jit
def advance(pointers, step, CHUNKS: tl.constexpr):
    """The pointers a `step` further."""
    new = ()
    for chunk in tl.static_range(CHUNKS):
        new = new + (pointers[chunk] + step,)
    return new


# ---- Memory ----------------------------------------------------------------------------------------------------------


@triton.jit
def _inside(kept, column, CHUNK: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Which channels of the pixels `kept` there are; chunks that C fills need no mask of their own."""
    FILLED: tl.constexpr = C % BLOCK_C == 0 if CHUNK == 0 else C == BLOCK_C + BLOCK_C // 2
    return kept if FILLED else kept & (column < C)


@triton.jit
def _widen(tile, TAKEN: tl.constexpr):
    """The tile rounded to TAKEN, in float32. Two bfloat16 take an instruction each, where the compiler makes three."""
    if tile.dtype == tl.bfloat16 and TAKEN != tl.float16 and not INTERPRETED and tile.numel > 1:
        wide = tl.inline_asm_elementwise(
            "{ shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000; }",
            "=r,=r,r", [tile], dtype=tl.float32, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        wide = tile.to(TAKEN).to(tl.float32)
    return wide


@triton.jit
def load(pointers, step, kept, columns, TAKEN: tl.constexpr, C: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr):
    """The channels a `step` after the pointers, rounded to TAKEN, in float32; zero where not `kept`."""
    tiles = ()
    for chunk in tl.static_range(CHUNKS):
        inside = _inside(kept, columns[chunk], chunk, C, BLOCK_C)
        tiles = tiles + (_widen(tl.load(pointers[chunk] + step, mask=inside, other=0.0), TAKEN),)
    return tiles


@triton.jit
def load_parameter(ptr, columns, PIXELS: tl.constexpr, C: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr):
    """A parameter [C] in float32, the same for all pixels."""
    same = tl.zeros([PIXELS, 1, 1], tl.int32)
    return load(pointers_to(ptr, same, columns, CHUNKS), 0, same == 0, columns, tl.float32, C, CHUNKS, BLOCK_C)


@triton.jit
def load_filters(
    ptr, columns, FLIPPED: tl.constexpr, TAKEN: tl.constexpr,
    PIXELS: tl.constexpr, C: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The nine taps of filters [9, C], in the order of their pixels, or the other way round."""
    same = tl.zeros([PIXELS, 1, 1], tl.int32)
    pointers = pointers_to(ptr, same, columns, CHUNKS)
    taps = ()
    for i in tl.static_range(9):
        row = 8 - i if FLIPPED else i
        taps = taps + (load(pointers, row * C, same == 0, columns, TAKEN, C, CHUNKS, BLOCK_C),)
    return taps


@triton.jit
def load_row(
    pointers, x, width, on_map, stride_x, columns, AROUND: tl.constexpr, WHOLE: tl.constexpr,
    TAKEN: tl.constexpr, C: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """A run of pixels of a row, and AROUND it one on either side; zeros where there is no map. The pointers are those of x."""
    row = ()
    for i in tl.static_range(-AROUND, RUN + AROUND):
        kept = _kept(x, i, width, on_map, WHOLE, RUN)
        row = row + (load(pointers, i * stride_x, kept, columns, TAKEN, C, CHUNKS, BLOCK_C),)
    return row


@triton.jit
def _store(pointers, step, kept, columns, tiles, C: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write the channels a `step` after the pointers where `kept`."""
    for chunk in tl.static_range(CHUNKS):
        inside = _inside(kept, columns[chunk], chunk, C, BLOCK_C)
        place = pointers[chunk] + step
        tl.store(place, tiles[chunk].to(place.dtype.element_ty), mask=inside)


@triton.jit
def store_row(
    pointers, x, width, on_map, columns, row, WHOLE: tl.constexpr,
    C: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Write a run of pixels of a contiguous map, where they are on it."""
    for i in tl.static_range(RUN):
        _store(pointers, i * C, _kept(x, i, width, on_map, WHOLE, RUN), columns, row[i], C, CHUNKS, BLOCK_C)


@triton.jit
def store_sums(ptr, tiles, columns, C: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write the sum of each channel over the pixels."""
    sums = ()
    for chunk in tl.static_range(CHUNKS):
        sums = sums + (tl.sum(tiles[chunk], 0, keep_dims=True),)
    zero = tl.zeros([1, 1, 1], tl.int32)
    _store(pointers_to(ptr, zero, columns, CHUNKS), 0, zero == 0, columns, sums, C, CHUNKS, BLOCK_C)


# ---- Arithmetic ------------------------------------------------------------------------------------------------------


@triton.jit
def repeat(tiles, RUN: tl.constexpr):
    """The same pixel RUN times."""
    row = ()
    for _ in tl.static_range(RUN):
        row = row + (tiles,)
    return row


@triton.jit
def convolve(sums, row, taps, FILTER_ROW: tl.constexpr, CHUNKS: tl.constexpr, RUN: tl.constexpr):
    """sums + one row of the filters over one row of the map."""
    pixels = ()
    for i in tl.static_range(RUN):
        tiles = ()
        for chunk in tl.static_range(CHUNKS):
            tile = sums[i][chunk]
            for shift in tl.static_range(3):
                tile += row[i + shift][chunk] * taps[3 * FILTER_ROW + shift][chunk]
            tiles = tiles + (tile,)
        pixels = pixels + (tiles,)
    return pixels


@triton.jit
def _means(row, C: tl.constexpr, CHUNKS: tl.constexpr, RUN: tl.constexpr):
    """The mean over the channels of each pixel, [PIXELS, 1, 1]; channels beyond C are zero."""
    totals = ()
    for i in tl.static_range(RUN):
        total = tl.sum(row[i][0], 2)  # of a thread's own
        for chunk in tl.static_range(1, CHUNKS):
            total += tl.sum(row[i][chunk], 2)
        totals = totals + (total,)
    means = ()
    if RUN == 2 and totals[0].shape[1] > 32:  # in one go, because warps wait for each other
        both = tl.split(tl.sum(tl.join(totals[0], totals[1]), 1))
        for i in tl.static_range(RUN):
            means = means + (both[i][:, None, None] / C,)
    else:
        for i in tl.static_range(RUN):
            means = means + (tl.sum(totals[i], 1)[:, None, None] / C,)
    return means


@triton.jit
def normalise(row, columns, eps, C: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr, RUN: tl.constexpr):
    """(c - mean) / sqrt(var + eps) and 1 / sqrt(var + eps) of each pixel, as `gpu.device.normalise` over chunks."""
    means = _means(row, C, CHUNKS, RUN)
    centred = ()
    squares = ()
    for i in tl.static_range(RUN):
        tiles = ()
        for chunk in tl.static_range(CHUNKS):
            tile = row[i][chunk] - means[i]
            tiles = tiles + (tl.where(_inside(columns[chunk] >= 0, columns[chunk], chunk, C, BLOCK_C), tile, 0.0),)
        centred = centred + (tiles,)
        squares = squares + (_multiply(tiles, tiles, CHUNKS),)
    variances = _means(squares, C, CHUNKS, RUN)
    normed = ()
    scales = ()
    for i in tl.static_range(RUN):
        scale = tl.rsqrt(variances[i] + eps)
        tiles = ()
        for chunk in tl.static_range(CHUNKS):
            tiles = tiles + (centred[i][chunk] * scale,)
        normed = normed + (tiles,)
        scales = scales + (scale,)
    return normed, scales


@triton.jit
def normalise_backward(grad, weight, normed, scales, C: tl.constexpr, CHUNKS: tl.constexpr, RUN: tl.constexpr):
    """The gradient of what was normalised, from that of normed * weight; zero for pixels whose gradient is."""
    scaled = ()
    products = ()
    for i in tl.static_range(RUN):
        tiles = _multiply(grad[i], weight, CHUNKS)
        scaled = scaled + (tiles,)
        products = products + (_multiply(tiles, normed[i], CHUNKS),)
    means = _means(scaled, C, CHUNKS, RUN)
    along = _means(products, C, CHUNKS, RUN)
    row = ()
    for i in tl.static_range(RUN):
        tiles = ()
        for chunk in tl.static_range(CHUNKS):
            tiles = tiles + (scales[i] * (scaled[i][chunk] - means[i] - normed[i][chunk] * along[i]),)
        row = row + (tiles,)
    return row


@triton.jit
def _multiply(a, b, CHUNKS: tl.constexpr):
    """a b, by chunk."""
    tiles = ()
    for chunk in tl.static_range(CHUNKS):
        tiles = tiles + (a[chunk] * b[chunk],)
    return tiles


@triton.jit
def multiply_add(a, b, sums, CHUNKS: tl.constexpr):
    """a b + sums, by chunk."""
    tiles = ()
    for chunk in tl.static_range(CHUNKS):
        tiles = tiles + (a[chunk] * b[chunk] + sums[chunk],)
    return tiles


@triton.jit
def add(sums, tiles, CHUNKS: tl.constexpr):
    """sums + tiles, by chunk."""
    new = ()
    for chunk in tl.static_range(CHUNKS):
        new = new + (sums[chunk] + tiles[chunk],)
    return new
