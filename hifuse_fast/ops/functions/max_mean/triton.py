"""Largest value and mean in Triton.

Over channels a program takes whole rows. Over pixels it takes a share of an image's pixels and a block of channels, and another
kernel merges the shares in their order, so that of equal values the first one is found. A NaN is larger than any number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.backends.triton import device
from hifuse_fast.backends.triton.launch import blocks, launch
from hifuse_fast.backends.triton.launch import why_not as why_not_triton

MAX_WIDTH = 16384  # a row has to fit into the registers of a program


def why_not(*, device: torch.device, dtype: torch.dtype, width: int = 1, **_: Any) -> str | None:
    """The reason the Triton kernels cannot serve this call, or None."""
    if width > MAX_WIDTH:
        return f"its maps have at most {MAX_WIDTH} channels, got {width}"
    return why_not_triton(device, dtype)


# ---- Kernels -----------------------------------------------------------------------------------------------------------


@triton.jit
def _channels_kernel(
    x_ptr,  # [rows, C]
    out_ptr,  # [rows, 2]
    index_ptr,  # [rows] int32
    rows,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    channel = tl.arange(0, BLOCK_C)[None, :]
    kept = (row[:, None] < rows) & (channel < C)
    x = tl.load(x_ptr + row[:, None] * C + channel, mask=kept, other=0.0).to(tl.float32)
    largest = device.largest(tl.where(kept, x, float("-inf")), 1)
    index = tl.min(tl.where(((x == largest[:, None]) | device.is_nan(x)) & kept, channel, C - 1), 1)  # of the first such value
    tl.store(out_ptr + 2 * row, largest.to(out_ptr.dtype.element_ty), mask=row < rows)
    tl.store(out_ptr + 2 * row + 1, (tl.sum(x, 1) / C).to(out_ptr.dtype.element_ty), mask=row < rows)
    tl.store(index_ptr + row, index.to(tl.int32), mask=row < rows)


@triton.jit
def _channels_backward_kernel(
    grad_ptr,  # [rows, 2]
    index_ptr,  # [rows] int32
    dx_ptr,  # [rows, C]
    rows,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    channel = tl.arange(0, BLOCK_C)[None, :]
    of_largest = tl.load(grad_ptr + 2 * row, mask=row < rows, other=0.0).to(tl.float32)
    of_mean = tl.load(grad_ptr + 2 * row + 1, mask=row < rows, other=0.0).to(tl.float32)
    index = tl.load(index_ptr + row, mask=row < rows, other=0)
    dx = of_mean / C + tl.where(channel == index, of_largest, 0.0)
    tl.store(dx_ptr + row * C + channel, dx.to(dx_ptr.dtype.element_ty), mask=(row < rows) & (channel < C))


@triton.jit
def _pixels_kernel(
    x_ptr,  # [B, pixels, C]
    partial_ptr,  # [2, B, shares, C] float32: largest value, sum
    place_ptr,  # [B, shares, C] int32: the pixel of the largest value
    pixels,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    share, shares = tl.program_id(0), tl.num_programs(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    image, images = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    inside = channel < C
    per_share = tl.cdiv(pixels, shares)
    end = tl.minimum((share + 1) * per_share, pixels)
    # By row of the tile, so that threads meet once at the end, and not for each tile.
    largest = tl.full([BLOCK_R, BLOCK_C], float("-inf"), tl.float32)
    place = tl.full([BLOCK_R, BLOCK_C], share * per_share, tl.int32)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    x_ptr += image * pixels * C
    for start in range(share * per_share, end, BLOCK_R):
        pixel = start + tl.arange(0, BLOCK_R)[:, None]
        kept = (pixel < end) & inside[None, :]
        x = tl.load(x_ptr + (pixel.to(tl.int64) * C + channel[None, :]), mask=kept, other=float("-inf")).to(tl.float32)
        total += tl.where(kept, x, 0.0)
        place = tl.where((x > largest) | device.is_nan(x), pixel, place)
        largest = tl.maximum(largest, x, propagate_nan=tl.PropagateNan.ALL)
    most = device.largest(largest, 0)
    first = tl.min(tl.where((largest == most[None, :]) | device.is_nan(largest), place, pixels), 0)
    offset = (image * shares + share) * C + channel
    tl.store(partial_ptr + offset, most, mask=inside)
    tl.store(partial_ptr + images * shares * C + offset, tl.sum(total, 0), mask=inside)
    tl.store(place_ptr + offset, first, mask=inside)


@triton.jit
def _merge_kernel(
    partial_ptr,  # [2, B, shares, C] float32: largest value, sum
    place_ptr,  # [B, shares, C] int32
    out_ptr,  # [B, 2, C]
    index_ptr,  # [B, C] int32
    pixels, shares,
    C: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    image, images = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    inside = channel < C
    largest = tl.full([BLOCK_C], float("-inf"), tl.float32)
    place = tl.zeros([BLOCK_C], tl.int32)
    total = tl.zeros([BLOCK_C], tl.float32)
    for share in range(shares):
        offset = (image * shares + share) * C + channel
        of_share = tl.load(partial_ptr + offset, mask=inside, other=0.0)
        total += tl.load(partial_ptr + images * shares * C + offset, mask=inside, other=0.0)
        larger = (of_share > largest) | device.is_nan(of_share)
        place = tl.where(larger, tl.load(place_ptr + offset, mask=inside, other=0), place)
        largest = tl.maximum(largest, of_share, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out_ptr + 2 * image * C + channel, largest.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(out_ptr + (2 * image + 1) * C + channel, (total / pixels).to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(index_ptr + image * C + channel, place, mask=inside)


@triton.jit
def _pixels_backward_kernel(
    grad_ptr,  # [B, 2, C]
    index_ptr,  # [B, C] int32
    dx_ptr,  # [B, pixels, C]
    rows, pixels,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    kept = (row < rows) & (channel < C)
    image = row // pixels
    of_largest = tl.load(grad_ptr + 2 * image * C + channel, mask=kept, other=0.0).to(tl.float32)
    of_mean = tl.load(grad_ptr + (2 * image + 1) * C + channel, mask=kept, other=0.0).to(tl.float32)
    index = tl.load(index_ptr + image * C + channel, mask=kept, other=0)
    dx = of_mean / pixels + tl.where(row - image * pixels == index, of_largest, 0.0)
    tl.store(dx_ptr + row * C + channel, dx.to(dx_ptr.dtype.element_ty), mask=kept)


# ---- Launchers ---------------------------------------------------------------------------------------------------------


def forward(x: Tensor, *, keep: bool, over: str) -> tuple[Tensor, list[Tensor]]:
    """See `hifuse_fast.ops.max_mean`; also where the largest values are: the channel [B, H, W] or the pixel [B, C], int32."""
    batch, height, width, channels = x.shape
    x, pixels = x.contiguous(), height * width
    if over == "channels":
        out = x.new_empty((batch, height, width, 2))
        index = x.new_empty((batch, height, width), dtype=torch.int32)
        tile, _, options = _tiles("max_mean_channels", x, whole_rows=True)
        grid = (blocks(batch * pixels, tile["BLOCK_R"]),)
        launch(_channels_kernel, grid, x, out, index, batch * pixels, C=channels, **tile, **options)
        return out, [index]
    tile, shares, options = _tiles("max_mean_pixels", x)
    out = x.new_empty((batch, 2, 1, channels))
    index = x.new_empty((batch, channels), dtype=torch.int32)
    partial = x.new_empty((2, batch, shares, channels), dtype=torch.float32)
    place = x.new_empty((batch, shares, channels), dtype=torch.int32)
    launch(
        _pixels_kernel, (shares, blocks(channels, tile["BLOCK_C"]), batch), x, partial, place, pixels,
        C=channels, **tile, **options,
    )  # fmt: skip
    launch(
        _merge_kernel, (blocks(channels, 128), batch), partial, place, out, index, pixels, shares,
        C=channels, BLOCK_C=128, num_warps=4,
    )  # fmt: skip
    return out, [index]


def backward(
    grad: Tensor, x: Tensor, *, kept: Sequence[Tensor], needs: Sequence[bool], over: str
) -> list[Tensor]:  # fmt: skip
    """The gradient of x, in the dtype of `grad`."""
    batch, height, width, channels = x.shape
    (index,) = kept
    grad, rows = grad.contiguous(), batch * height * width
    dx = grad.new_empty((batch, height, width, channels))
    if over == "channels":
        tile, _, options = _tiles("max_mean_channels_backward", dx, whole_rows=True)
        grid: tuple[int, ...] = (blocks(rows, tile["BLOCK_R"]),)
        launch(_channels_backward_kernel, grid, grad, index, dx, rows, C=channels, **tile, **options)
        return [dx]
    tile, _, options = _tiles("max_mean_pixels_backward", dx)
    grid = (blocks(rows, tile["BLOCK_R"]), blocks(channels, tile["BLOCK_C"]))
    launch(_pixels_backward_kernel, grid, grad, index, dx, rows, height * width, C=channels, **tile, **options)
    return [dx]


def _tiles(kernel: str, x: Tensor, whole_rows: bool = False) -> tuple[dict[str, int], int, dict[str, int]]:
    """The sides of a tile, the number of shares of an image's pixels, and what else is configured."""
    config = dict(tables.lookup(kernel, tables.key(x.shape[3]), tables.architecture(x.device)))
    block = triton.next_power_of_2(x.shape[3])
    block = block if whole_rows else min(block, config.pop("channels"))
    tile = {"BLOCK_R": max(1, config.pop("elements") // block), "BLOCK_C": block}
    wanted = config.pop("programs", 1) // max(1, x.shape[0] * blocks(x.shape[3], block))
    shares = max(1, min(wanted, blocks(x.shape[1] * x.shape[2], tile["BLOCK_R"])))
    return tile, shares, config
