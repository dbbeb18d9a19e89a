"""Depthwise 3x3 convolution with layer normalisation in Triton.

A program takes PIXELS neighbouring pixels with all their channels and walks down ROWS rows: it reads a row of the map once from
memory, at three shifts of which the first level cache serves two, and adds it to the three rows of the result that see it. The
taps of a channel stay in the registers of its thread, and so should one pixel of it: the parameters are loaded as tiles of a
pixel's shape, to lie as the map does. Channels are padded to a power of two, or to three of them (CHUNKS), if that is less:
a map in a kernel is a tuple of tiles [PIXELS, BLOCK_C], by chunk. Products and sums are float32.

The backward is two kernels. The first convolves again, differentiates the normalisation, and writes dc, the gradient of the
convolution, in the dtype that PyTorch's own has. The second convolves dc with the flipped filters, and multiplies its
neighbours with x, a slice of the channels at a time. Both add up gradients of parameters per program, over a fixed share of the
map, and then over programs: no atomics, so equal inputs give equal gradients.
"""

# Triton knows no starred tuples, and a constant is no less an argument; mypy takes an empty tuple for one that stays empty.
# ruff: noqa: RUF005, SIM300
# mypy: disable-error-code="assignment"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hifuse_fast.gpu import configs
from hifuse_fast.gpu.launch import architecture, blocks, launch, operator, strided
from hifuse_fast.gpu.launch import why_not as why_not_triton

MAX_CHANNELS = 4096  # the filters of all channels have to fit into the registers of a program


def why_not(*, device: torch.device, dtype: torch.dtype, channels: int = 1, width: int = 1, **_: Any) -> str | None:
    """The reason the Triton kernels cannot serve this call, or None."""
    if channels > MAX_CHANNELS:
        return f"its maps have at most {MAX_CHANNELS} channels, got {channels}"
    if channels * width >= 2**31:
        return f"a row of a map has less than 2^31 elements, got {channels * width}"
    return why_not_triton(device, dtype)


# ---- Kernels -----------------------------------------------------------------------------------------------------------


@triton.jit
def _place(tile, height, width, PIXELS: tl.constexpr, ROWS: tl.constexpr):
    """Image (int64), first row and pixels [PIXELS, 1] (int32) of a tile; neighbouring tiles lie side by side."""
    strips = tl.cdiv(width, PIXELS)
    stacks = tl.cdiv(height, ROWS)
    rest = tile // strips
    x = tile % strips * PIXELS + tl.arange(0, PIXELS)[:, None]
    return (rest // stacks).to(tl.int64), rest % stacks * ROWS, x


@triton.jit
def _on_map(i, size):
    """Whether 0 <= i < size, in one comparison: as an unsigned number -1 is large."""
    return i.to(tl.uint32) < size


@triton.jit
def _inside(kept, column, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Which channels of the pixels `kept` there are; blocks that C fills need no mask of their own."""
    return kept if C % BLOCK_C == 0 else kept & (column < C)


@triton.jit
def _load(ptr, place, kept, column, TAKEN: tl.constexpr, C: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr):
    """The channels at ptr + place [PIXELS, BLOCK_C], rounded to TAKEN, in float32; zero where not `kept`."""
    tiles = ()
    for chunk in tl.static_range(CHUNKS):
        inside = _inside(kept, column + chunk * BLOCK_C, C, BLOCK_C)
        tile = tl.load(ptr + place + chunk * BLOCK_C, mask=inside, other=0.0)
        tiles = tiles + (tile.to(TAKEN).to(tl.float32),)
    return tiles


@triton.jit
def _store(ptr, place, kept, column, tiles, C: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write the channels at ptr + place [PIXELS, BLOCK_C] where `kept`."""
    for chunk in tl.static_range(CHUNKS):
        inside = _inside(kept, column + chunk * BLOCK_C, C, BLOCK_C)
        tl.store(ptr + place + chunk * BLOCK_C, tiles[chunk].to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _load_filters(
    ptr, place, column, FLIPPED: tl.constexpr, TAKEN: tl.constexpr, C: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr
):
    """The nine taps of filters [9, C], in the order of their pixels, or the other way round."""
    taps = ()
    for i in tl.static_range(9):
        row = 8 - i if FLIPPED else i
        taps = taps + (_load(ptr + row * C, place, place >= 0, column, TAKEN, C, CHUNKS, BLOCK_C),)
    return taps


@triton.jit
def _load_row(
    ptr, x, width, on_map, stride_x, column,
    TAKEN: tl.constexpr, C: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The row of an image at ptr at the pixels x - 1, x and x + 1, with zeros around the image."""
    row = ()
    for shift in tl.static_range(3):
        near = x + (shift - 1)
        place = near.to(tl.int64) * stride_x + column
        row = row + (_load(ptr, place, _on_map(near, width) & on_map, column, TAKEN, C, CHUNKS, BLOCK_C),)
    return row


@triton.jit
def _convolve(sums, row, taps, FILTER_ROW: tl.constexpr, CHUNKS: tl.constexpr):
    """sums + one row of the filters over one row of the map."""
    tiles = ()
    for chunk in tl.static_range(CHUNKS):
        tile = sums[chunk]
        for shift in tl.static_range(3):
            tile += row[shift][chunk] * taps[3 * FILTER_ROW + shift][chunk]
        tiles = tiles + (tile,)
    return tiles


@triton.jit
def _mean(tiles, C: tl.constexpr, CHUNKS: tl.constexpr):
    """The mean over the channels of each pixel, [PIXELS, 1]; channels beyond C are zero."""
    total = tiles[0]
    for chunk in tl.static_range(1, CHUNKS):
        total += tiles[chunk]
    return tl.sum(total, 1, keep_dims=True) / C


@triton.jit
def _normalise(tiles, column, eps, C: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr):
    """(c - mean) / sqrt(var + eps) and 1 / sqrt(var + eps) of each pixel, as `gpu.device.normalise` over chunks."""
    mean = _mean(tiles, C, CHUNKS)
    centred = ()
    squares = ()
    for chunk in tl.static_range(CHUNKS):
        tile = tiles[chunk] - mean
        if C % BLOCK_C != 0:
            tile = tl.where(column + chunk * BLOCK_C < C, tile, 0.0)
        centred = centred + (tile,)
        squares = squares + (tile * tile,)
    scale = tl.rsqrt(_mean(squares, C, CHUNKS) + eps)
    normed = ()
    for chunk in tl.static_range(CHUNKS):
        normed = normed + (centred[chunk] * scale,)
    return normed, scale


@triton.jit
def _forward_kernel(
    x_ptr,  # [B, height, width, C], strided
    filters_ptr,  # [9, C]
    filter_bias_ptr,  # [C]
    weight_ptr,  # [C]
    bias_ptr,  # [C]
    out_ptr,  # [B, height, width, C]
    tiles, height, width, stride_b, stride_y, stride_x, eps, TAKEN: tl.constexpr,
    C: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr, PIXELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK_C)[None, :]
    same = tl.zeros([PIXELS, 1], tl.int32) + column
    taps = _load_filters(filters_ptr, same, column, False, TAKEN, C, CHUNKS, BLOCK_C)
    filter_bias = _load(filter_bias_ptr, same, same >= 0, column, tl.float32, C, CHUNKS, BLOCK_C)
    weight = _load(weight_ptr, same, same >= 0, column, tl.float32, C, CHUNKS, BLOCK_C)
    bias = _load(bias_ptr, same, same >= 0, column, tl.float32, C, CHUNKS, BLOCK_C)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        image, top, x = _place(tile, height, width, PIXELS, ROWS)
        source = x_ptr + image * stride_b + (top.to(tl.int64) - 1) * stride_y
        target = out_ptr + (image * height + top) * width * C
        above = filter_bias  # of row y - 1, as far as it is summed up
        here = filter_bias
        for step in tl.static_range(ROWS + 2):
            y = top + (step - 1)
            row = _load_row(source, x, width, _on_map(y, height), stride_x, column, TAKEN, C, CHUNKS, BLOCK_C)
            source += stride_y
            if step >= 2:
                convolved = _convolve(above, row, taps, 2, CHUNKS)
                normed, _ = _normalise(convolved, column, eps, C, CHUNKS, BLOCK_C)
                scaled = ()
                for chunk in tl.static_range(CHUNKS):
                    scaled = scaled + (normed[chunk] * weight[chunk] + bias[chunk],)
                kept = _on_map(x, width) & _on_map(y - 1, height)
                _store(target, x * C + column, kept, column, scaled, C, CHUNKS, BLOCK_C)
                target += width * C
            above = _convolve(here, row, taps, 1, CHUNKS)
            here = _convolve(filter_bias, row, taps, 0, CHUNKS)


@triton.jit
def _backward_norm_kernel(
    grad_ptr,  # [B, height, width, C]
    x_ptr,  # [B, height, width, C], strided
    filters_ptr,  # [9, C]
    filter_bias_ptr,  # [C]
    weight_ptr,  # [C]
    dc_ptr,  # [B, height, width, C]: the gradient of the convolution
    partial_ptr,  # [3, programs, C] float32: of the gradients of filter_bias, weight and bias
    tiles, height, width, stride_b, stride_y, stride_x, eps, TAKEN: tl.constexpr,
    C: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr, PIXELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK_C)[None, :]
    same = tl.zeros([PIXELS, 1], tl.int32) + column
    taps = _load_filters(filters_ptr, same, column, False, TAKEN, C, CHUNKS, BLOCK_C)
    filter_bias = _load(filter_bias_ptr, same, same >= 0, column, tl.float32, C, CHUNKS, BLOCK_C)
    weight = _load(weight_ptr, same, same >= 0, column, tl.float32, C, CHUNKS, BLOCK_C)
    dfilter_bias = ()
    for _ in tl.static_range(CHUNKS):
        dfilter_bias = dfilter_bias + (tl.zeros([PIXELS, BLOCK_C], tl.float32),)
    dweight = dfilter_bias
    dbias = dfilter_bias
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        image, top, x = _place(tile, height, width, PIXELS, ROWS)
        source = x_ptr + image * stride_b + (top.to(tl.int64) - 1) * stride_y
        start = (image * height + top) * width * C
        above = filter_bias  # of row y - 1, as far as it is summed up
        here = filter_bias
        for step in tl.static_range(ROWS + 2):
            y = top + (step - 1)
            row = _load_row(source, x, width, _on_map(y, height), stride_x, column, TAKEN, C, CHUNKS, BLOCK_C)
            source += stride_y
            if step >= 2:
                convolved = _convolve(above, row, taps, 2, CHUNKS)
                kept = _on_map(x, width) & _on_map(y - 1, height)
                place = x * C + column
                grad = _load(grad_ptr + start, place, kept, column, tl.float32, C, CHUNKS, BLOCK_C)
                normed, scale = _normalise(convolved, column, eps, C, CHUNKS, BLOCK_C)
                dweight = _add_product(dweight, grad, normed, CHUNKS)
                dbias = _add(dbias, grad, CHUNKS)
                dc = _normalise_backward(grad, weight, normed, scale, C, CHUNKS)
                dfilter_bias = _add(dfilter_bias, dc, CHUNKS)
                _store(dc_ptr + start, place, kept, column, dc, C, CHUNKS, BLOCK_C)
                start += width * C
            above = _convolve(here, row, taps, 1, CHUNKS)
            here = _convolve(filter_bias, row, taps, 0, CHUNKS)
    size = tl.num_programs(0).to(tl.int64) * C
    place = partial_ptr + tl.program_id(0).to(tl.int64) * C
    _store_sums(place, dfilter_bias, column, C, CHUNKS, BLOCK_C)
    _store_sums(place + size, dweight, column, C, CHUNKS, BLOCK_C)
    _store_sums(place + 2 * size, dbias, column, C, CHUNKS, BLOCK_C)


@triton.jit
def _add(sums, tiles, CHUNKS: tl.constexpr):
    """sums + tiles, by chunk."""
    new = ()
    for chunk in tl.static_range(CHUNKS):
        new = new + (sums[chunk] + tiles[chunk],)
    return new


@triton.jit
def _add_product(sums, a, b, CHUNKS: tl.constexpr):
    """sums + a b, by chunk."""
    new = ()
    for chunk in tl.static_range(CHUNKS):
        new = new + (sums[chunk] + a[chunk] * b[chunk],)
    return new


@triton.jit
def _normalise_backward(grad, weight, normed, scale, C: tl.constexpr, CHUNKS: tl.constexpr):
    """The gradient of what was normalised, from that of normed * weight; zero for pixels whose gradient is."""
    scaled = ()
    products = ()
    for chunk in tl.static_range(CHUNKS):
        scaled = scaled + (grad[chunk] * weight[chunk],)
        products = products + (grad[chunk] * weight[chunk] * normed[chunk],)
    mean = _mean(scaled, C, CHUNKS)
    along = _mean(products, C, CHUNKS)
    tiles = ()
    for chunk in tl.static_range(CHUNKS):
        tiles = tiles + (scale * (scaled[chunk] - mean - normed[chunk] * along),)
    return tiles


@triton.jit
def _store_sums(ptr, tiles, column, C: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write the sum of each channel over the pixels."""
    sums = ()
    for chunk in tl.static_range(CHUNKS):
        sums = sums + (tl.sum(tiles[chunk], 0, keep_dims=True),)
    _store(ptr, column, column >= 0, column, sums, C, CHUNKS, BLOCK_C)


@triton.jit
def _correlate(dtaps, row, below, here, above, STEP: tl.constexpr, ROWS: tl.constexpr):
    """dtaps + the products of three rows of x, where they are of this tile, with their neighbours in one row of dc."""
    rows = (below, here, above)
    sums = ()
    for i in tl.static_range(9):
        tile = dtaps[i]
        if STEP >= i // 3 and STEP < ROWS + i // 3:
            tile += rows[i // 3] * row[i % 3][0]
        sums = sums + (tile,)
    return sums


@triton.jit
def _backward_filters_kernel(
    dc_ptr,  # [B, height, width, C]
    x_ptr,  # [B, height, width, C], strided
    filters_ptr,  # [9, C]
    dx_ptr,  # [B, height, width, C]
    partial_ptr,  # [programs, 9, C] float32: of the gradient of the filters
    tiles, height, width, stride_b, stride_y, stride_x, TAKEN: tl.constexpr,
    C: tl.constexpr, BLOCK_C: tl.constexpr, PIXELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    same = tl.zeros([PIXELS, 1], tl.int32) + column
    zero = tl.zeros([PIXELS, BLOCK_C], tl.float32)
    taps = _load_filters(filters_ptr, same, column, True, TAKEN, C, 1, BLOCK_C)
    dtaps = (zero, zero, zero, zero, zero, zero, zero, zero, zero)  # flipped, as taps are
    for tile in range(tl.program_id(1), tiles, tl.num_programs(1)):
        image, top, x = _place(tile, height, width, PIXELS, ROWS)
        x_source = x_ptr + image * stride_b + top.to(tl.int64) * stride_y
        start = (image * height + top) * width * C
        source = dc_ptr + start - width * C
        target = dx_ptr + start
        above = (zero,)  # the gradient of row y - 1 of x, as far as it is summed up
        here = (zero,)
        x_above = zero
        x_here = zero
        x_below = zero
        for step in tl.static_range(ROWS + 2):
            y = top + (step - 1)
            row = _load_row(source, x, width, _on_map(y, height), C, column, tl.float32, C, 1, BLOCK_C)
            source += width * C
            if step < ROWS:
                kept = _on_map(x, width) & _on_map(y + 1, height)
                place = x.to(tl.int64) * stride_x + column
                x_below = _load(x_source, place, kept, column, TAKEN, C, 1, BLOCK_C)[0]
                x_source += stride_y
            dtaps = _correlate(dtaps, row, x_below, x_here, x_above, step, ROWS)
            x_above = x_here
            x_here = x_below
            if step >= 2:
                dx = _convolve(above, row, taps, 2, 1)
                kept = _on_map(x, width) & _on_map(y - 1, height)
                _store(target, x * C + column, kept, column, dx, C, 1, BLOCK_C)
                target += width * C
            above = _convolve(here, row, taps, 1, 1)
            here = _convolve((zero,), row, taps, 0, 1)
    place = partial_ptr + tl.program_id(1).to(tl.int64) * 9 * C
    for i in tl.static_range(9):
        _store_sums(place + (8 - i) * C, (dtaps[i],), column, C, 1, BLOCK_C)


# ---- Launchers ---------------------------------------------------------------------------------------------------------


@operator("depthwise_norm_forward")
def forward(
    x: Tensor,
    filters: Tensor,
    filter_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    taken: torch.dtype,
    dtype: torch.dtype,
) -> Tensor:
    """See `hifuse_fast.ops.depthwise_norm`; arguments are validated; x and filters are taken in one dtype, the result is of
    another."""
    x = strided(x)
    out = x.new_empty(x.shape, dtype=dtype)
    sides, tiles, programs, options = _tiles("depthwise_norm_forward", x)
    launch(
        _forward_kernel, (programs,), x, _by_tap(filters), filter_bias.contiguous(), weight.contiguous(), bias.contiguous(),
        out, tiles, *_geometry(x), eps, TAKEN=_triton_dtype(taken), C=x.shape[3], **sides, **options,
    )  # fmt: skip
    return out


@operator("depthwise_norm_backward")
def backward(
    grad: Tensor, x: Tensor, filters: Tensor, filter_bias: Tensor, weight: Tensor, eps: float, taken: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x in its dtype, and in float32 of the filters, and [3, C] of filter_bias, weight and bias."""
    x, grad, taps = strided(x), grad.contiguous(), _by_tap(filters)
    channels = x.shape[3]
    shared = {"TAKEN": _triton_dtype(taken), "C": channels}
    dc = x.new_empty(x.shape, dtype=taken)
    sides, tiles, programs, options = _tiles("depthwise_norm_backward_norm", x)
    sums = x.new_empty((3, programs, channels), dtype=torch.float32)
    launch(
        _backward_norm_kernel, (programs,), grad, x, taps, filter_bias.contiguous(), weight.contiguous(), dc, sums,
        tiles, *_geometry(x), eps, **shared, **sides, **options,
    )  # fmt: skip
    dx, dfilters = backward_convolution(dc, x, filters)
    return dx, dfilters, sums.sum(1)


def backward_convolution(dc: Tensor, x: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Of the gradient of a depthwise convolution those of x, in its dtype, and of the filters, in float32.

    x, its channels side by side, and filters are taken in the dtype of `dc`, which is contiguous.
    """
    channels = x.shape[3]
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    sides, tiles, programs, options = _tiles("depthwise_norm_backward_filters", x, whole=False)
    slices = blocks(channels, sides["BLOCK_C"])
    dfilters = x.new_empty((programs, 9, channels), dtype=torch.float32)
    launch(
        _backward_filters_kernel, (slices, programs), dc, x, _by_tap(filters), dx, dfilters,
        tiles, *_geometry(x), TAKEN=_triton_dtype(dc.dtype), C=channels, **sides, **options,
    )  # fmt: skip
    return dx, dfilters.sum(0).t().reshape(filters.shape)


def _tiles(kernel: str, x: Tensor, *, whole: bool = True) -> tuple[dict[str, int], int, int, dict[str, int]]:
    """The sides of a tile, of all channels or of a slice; how many tiles there are, and programs; what else is configured.

    Tiles have fewer rows than configured where that still leaves no program with two of them.
    """
    batch, height, width, channels = x.shape
    chunks, block = _chunks(channels)
    key = f"{8 * x.element_size()}-bit {chunks * block}"
    config = dict(configs.lookup(kernel, key, architecture(x.device)))
    elements, rows, programs = config.pop("elements"), config.pop("rows"), config.pop("programs")
    if not whole:
        block = min(block, config.pop("channels"))
        programs = blocks(programs, blocks(channels, block))
    pixels = min(triton.next_power_of_2(width), max(1, elements // block))
    strips = batch * blocks(width, pixels)
    while rows > 1 and strips * blocks(height, blocks(rows, 2)) <= programs:
        rows = blocks(rows, 2)
    tiles = strips * blocks(height, rows)
    programs = blocks(tiles, max(1, blocks(tiles, programs)))  # the fewest that are done as early
    sides = {"BLOCK_C": block, "PIXELS": pixels, "ROWS": rows} | ({"CHUNKS": chunks} if whole else {})
    return sides, tiles, max(1, programs), config


def _chunks(channels: int) -> tuple[int, int]:
    """One power of two that holds the channels, or three smaller ones where these are less together."""
    whole, third = triton.next_power_of_2(channels), triton.next_power_of_2(blocks(channels, 3))
    return (3, third) if 3 * third < whole else (1, whole)


def _by_tap(filters: Tensor) -> Tensor:
    """[C, 1, 3, 3] -> [9, C]: the channels of a tap side by side, as those of a pixel."""
    return filters.reshape(-1, 9).t().contiguous()


def _geometry(x: Tensor) -> tuple[int, ...]:
    """height, width and the strides of a map."""
    return (x.shape[1], x.shape[2], *x.stride()[:3])


def _triton_dtype(dtype: torch.dtype) -> Any:
    return getattr(tl, str(dtype).removeprefix("torch."))
