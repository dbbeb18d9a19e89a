"""The Triton kernels of the depthwise convolution with layer normalisation; triton.py launches them.

A program takes a strip of neighbouring pixels with all their channels, and walks down ROWS rows. A row of the map is read once
from memory; its pixels are added to their neighbours in the runs of triton_maps.py, and to the three rows of the result that
see them. The taps of a channel stay in the registers of its thread. What these kernels wait for is as much the issue of
instructions as memory: so a value is loaded and widened once a run, and the pixels of a dense map (DENSE) lie at constant
distances from one address.

The backward is two kernels, see triton.py.
"""

# A constant is no less an argument, and Triton knows no starred tuples; mypy takes an empty tuple for one that stays empty.
# ruff: noqa: RUF005, SIM300
# mypy: disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from hifuse_fast.ops.functions.depthwise_norm import triton_maps as maps


@triton.jit
def forward_kernel(
    x_ptr,  # [B, height, width, C], strided
    filters_ptr,  # [9, C]
    filter_bias_ptr,  # [C]
    weight_ptr,  # [C]
    bias_ptr,  # [C]
    out_ptr,  # [B, height, width, C]
    tiles, height, width, stride_b, stride_y, stride_x, eps, DENSE: tl.constexpr, WHOLE: tl.constexpr, TAKEN: tl.constexpr,
    C: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr, LANES: tl.constexpr,
    PIXELS: tl.constexpr, RUN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    columns = maps.columns_of(0, CHUNKS, BLOCK_C, LANES)
    taps = maps.load_filters(filters_ptr, columns, False, TAKEN, PIXELS, C, CHUNKS, BLOCK_C)
    filter_bias = maps.load_parameter(filter_bias_ptr, columns, PIXELS, C, CHUNKS, BLOCK_C)
    weight = maps.load_parameter(weight_ptr, columns, PIXELS, C, CHUNKS, BLOCK_C)
    bias = maps.load_parameter(bias_ptr, columns, PIXELS, C, CHUNKS, BLOCK_C)
    start = maps.repeat(filter_bias, RUN)
    step_x = C if DENSE else tl.cast(stride_x, tl.int64)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        image, top, x = maps.place(tile, height, width, PIXELS, RUN, ROWS)
        source = x_ptr + image * stride_b + (top.to(tl.int64) - 1) * stride_y
        sources = maps.pointers_to(source, x.to(tl.int64) * step_x, columns, CHUNKS)
        targets = maps.pointers_to(out_ptr + (image * height + top) * width * C, x * C, columns, CHUNKS)
        above = start  # of row y - 1, as far as it is summed up
        here = start
        for step in tl.static_range(ROWS + 2):
            y = top + (step - 1)
            on_map = maps.row_on_map(y, height, step - 1, WHOLE, ROWS)
            row = maps.load_row(
                sources, x, width, on_map, step_x, columns, 1, WHOLE, TAKEN, C, CHUNKS, BLOCK_C, RUN
            )  # fmt: skip
            sources = maps.advance(sources, stride_y, CHUNKS)
            if step >= 2:
                convolved = maps.convolve(above, row, taps, 2, CHUNKS, RUN)
                normed, _ = maps.normalise(convolved, columns, eps, C, CHUNKS, BLOCK_C, RUN)
                scaled = ()
                for i in tl.static_range(RUN):
                    scaled = scaled + (maps.multiply_add(normed[i], weight, bias, CHUNKS),)
                on_map = maps.row_on_map(y - 1, height, step - 2, WHOLE, ROWS)
                maps.store_row(targets, x, width, on_map, columns, scaled, WHOLE, C, CHUNKS, BLOCK_C, RUN)
                targets = maps.advance(targets, width * C, CHUNKS)
            above = maps.convolve(here, row, taps, 1, CHUNKS, RUN)
            here = maps.convolve(start, row, taps, 0, CHUNKS, RUN)


@triton.jit
def backward_norm_kernel(
    grad_ptr,  # [B, height, width, C]
    x_ptr,  # [B, height, width, C], strided
    filters_ptr,  # [9, C]
    filter_bias_ptr,  # [C]
    weight_ptr,  # [C]
    dc_ptr,  # [B, height, width, C]: the gradient of the convolution
    partial_ptr,  # [3, programs, C] float32: of the gradients of filter_bias, weight and bias
    tiles, height, width, stride_b, stride_y, stride_x, eps, DENSE: tl.constexpr, WHOLE: tl.constexpr, TAKEN: tl.constexpr,
    C: tl.constexpr, CHUNKS: tl.constexpr, BLOCK_C: tl.constexpr, LANES: tl.constexpr,
    PIXELS: tl.constexpr, RUN: tl.constexpr, ROWS: tl.constexpr, CONVOLUTION: tl.constexpr, PARAMETERS: tl.constexpr,
):  # fmt: skip
    """CONVOLUTION and PARAMETERS say whether dc is needed, and the sums."""
    columns = maps.columns_of(0, CHUNKS, BLOCK_C, LANES)
    taps = maps.load_filters(filters_ptr, columns, False, TAKEN, PIXELS, C, CHUNKS, BLOCK_C)
    filter_bias = maps.load_parameter(filter_bias_ptr, columns, PIXELS, C, CHUNKS, BLOCK_C)
    weight = maps.load_parameter(weight_ptr, columns, PIXELS, C, CHUNKS, BLOCK_C)
    start = maps.repeat(filter_bias, RUN)
    dfilter_bias = ()
    for chunk in tl.static_range(CHUNKS):
        dfilter_bias = dfilter_bias + (tl.zeros([PIXELS, LANES, BLOCK_C // LANES >> chunk], tl.float32),)
    dweight = dfilter_bias
    dbias = dfilter_bias
    step_x = C if DENSE else tl.cast(stride_x, tl.int64)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        image, top, x = maps.place(tile, height, width, PIXELS, RUN, ROWS)
        source = x_ptr + image * stride_b + (top.to(tl.int64) - 1) * stride_y
        sources = maps.pointers_to(source, x.to(tl.int64) * step_x, columns, CHUNKS)
        first = (image * height + top) * width * C
        grads = maps.pointers_to(grad_ptr + first, x * C, columns, CHUNKS)
        targets = maps.pointers_to(dc_ptr + first, x * C, columns, CHUNKS)
        above = start  # of row y - 1, as far as it is summed up
        here = start
        for step in tl.static_range(ROWS + 2):
            y = top + (step - 1)
            on_map = maps.row_on_map(y, height, step - 1, WHOLE, ROWS)
            row = maps.load_row(
                sources, x, width, on_map, step_x, columns, 1, WHOLE,
                TAKEN, C, CHUNKS, BLOCK_C, RUN,
            )  # fmt: skip
            sources = maps.advance(sources, stride_y, CHUNKS)
            if step >= 2:
                on_map = maps.row_on_map(y - 1, height, step - 2, WHOLE, ROWS)
                grad = maps.load_row(
                    grads, x, width, on_map, C, columns, 0, WHOLE, tl.float32, C, CHUNKS, BLOCK_C, RUN
                )  # fmt: skip
                convolved = maps.convolve(above, row, taps, 2, CHUNKS, RUN)
                normed, scales = maps.normalise(convolved, columns, eps, C, CHUNKS, BLOCK_C, RUN)
                dc = maps.normalise_backward(grad, weight, normed, scales, C, CHUNKS, RUN)
                if PARAMETERS:
                    for i in tl.static_range(RUN):
                        dweight = maps.multiply_add(grad[i], normed[i], dweight, CHUNKS)
                        dbias = maps.add(dbias, grad[i], CHUNKS)
                        dfilter_bias = maps.add(dfilter_bias, dc[i], CHUNKS)
                if CONVOLUTION:
                    maps.store_row(targets, x, width, on_map, columns, dc, WHOLE, C, CHUNKS, BLOCK_C, RUN)
                grads = maps.advance(grads, width * C, CHUNKS)
                targets = maps.advance(targets, width * C, CHUNKS)
            above = maps.convolve(here, row, taps, 1, CHUNKS, RUN)
            here = maps.convolve(start, row, taps, 0, CHUNKS, RUN)
    if PARAMETERS:
        size = tl.num_programs(0).to(tl.int64) * C
        place = partial_ptr + tl.program_id(0).to(tl.int64) * C
        maps.store_sums(place, dfilter_bias, columns, C, CHUNKS, BLOCK_C)
        maps.store_sums(place + size, dweight, columns, C, CHUNKS, BLOCK_C)
        maps.store_sums(place + 2 * size, dbias, columns, C, CHUNKS, BLOCK_C)


@triton.jit
def _correlate(dtaps, row, below, here, above, STEP: tl.constexpr, ROWS: tl.constexpr, RUN: tl.constexpr):
    """dtaps + the products of three rows of x, where they are of this tile, with their neighbours in one row of dc."""
    rows = (below, here, above)
    sums = ()
    for i in tl.static_range(9):
        tile = dtaps[i]
        if STEP >= i // 3 and STEP < ROWS + i // 3:
            for pixel in tl.static_range(RUN):
                tile += rows[i // 3][pixel][0] * row[pixel + i % 3][0]
        sums = sums + (tile,)
    return sums


@triton.jit
def backward_filters_kernel(
    dc_ptr,  # [B, height, width, C]
    x_ptr,  # [B, height, width, C], strided
    filters_ptr,  # [9, C]
    dx_ptr,  # [B, height, width, C]
    partial_ptr,  # [programs, 9, C] float32: of the gradient of the filters
    tiles, height, width, stride_b, stride_y, stride_x, DENSE: tl.constexpr, WHOLE: tl.constexpr, TAKEN: tl.constexpr,
    C: tl.constexpr, BLOCK_C: tl.constexpr, LANES: tl.constexpr,
    PIXELS: tl.constexpr, RUN: tl.constexpr, ROWS: tl.constexpr, MAP: tl.constexpr, FILTERS: tl.constexpr,
):  # fmt: skip
    """MAP and FILTERS say whether the gradient of x is needed, and that of the filters."""
    columns = maps.columns_of(tl.program_id(0) * BLOCK_C, 1, BLOCK_C, LANES)
    zero = tl.zeros([PIXELS, LANES, BLOCK_C // LANES], tl.float32)
    zeros = maps.repeat((zero,), RUN)
    taps = maps.load_filters(filters_ptr, columns, True, TAKEN, PIXELS, C, 1, BLOCK_C)
    dtaps = (zero, zero, zero, zero, zero, zero, zero, zero, zero)  # flipped, as taps are
    step_x = C if DENSE else tl.cast(stride_x, tl.int64)
    for tile in range(tl.program_id(1), tiles, tl.num_programs(1)):
        image, top, x = maps.place(tile, height, width, PIXELS, RUN, ROWS)
        x_source = x_ptr + image * stride_b + top.to(tl.int64) * stride_y
        x_sources = maps.pointers_to(x_source, x.to(tl.int64) * step_x, columns, 1)
        start = (image * height + top) * width * C
        sources = maps.pointers_to(dc_ptr + start - width * C, x * C, columns, 1)
        targets = maps.pointers_to(dx_ptr + start, x * C, columns, 1)
        above = zeros  # the gradient of row y - 1 of x, as far as it is summed up
        here = zeros
        x_above = zeros
        x_here = zeros
        x_below = zeros
        for step in tl.static_range(ROWS + 2):
            y = top + (step - 1)
            on_map = maps.row_on_map(y, height, step - 1, WHOLE, ROWS)
            row = maps.load_row(
                sources, x, width, on_map, C, columns, 1, WHOLE,
                tl.float32, C, 1, BLOCK_C, RUN,
            )  # fmt: skip
            sources = maps.advance(sources, width * C, 1)
            if FILTERS:
                if step < ROWS:
                    on_map = maps.row_on_map(y + 1, height, step, WHOLE, ROWS)
                    x_below = maps.load_row(
                        x_sources, x, width, on_map, step_x, columns, 0, WHOLE, TAKEN, C, 1, BLOCK_C, RUN
                    )  # fmt: skip
                    x_sources = maps.advance(x_sources, stride_y, 1)
                dtaps = _correlate(dtaps, row, x_below, x_here, x_above, step, ROWS, RUN)
                x_above = x_here
                x_here = x_below
            if MAP:
                if step >= 2:
                    dx = maps.convolve(above, row, taps, 2, 1, RUN)
                    on_map = maps.row_on_map(y - 1, height, step - 2, WHOLE, ROWS)
                    maps.store_row(targets, x, width, on_map, columns, dx, WHOLE, C, 1, BLOCK_C, RUN)
                    targets = maps.advance(targets, width * C, 1)
                above = maps.convolve(here, row, taps, 1, 1, RUN)
                here = maps.convolve(zeros, row, taps, 0, 1, RUN)
    if FILTERS:
        place = partial_ptr + tl.program_id(1).to(tl.int64) * 9 * C
        for i in tl.static_range(9):
            maps.store_sums(place + (8 - i) * C, (dtaps[i],), columns, C, 1, BLOCK_C)
