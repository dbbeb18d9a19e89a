"""The gated concatenation in Triton: what the gates look at, the gates, and the concatenation with its norm.

Three kernels. The gates of pixels and those of channels are unlike, but neither waits for the other: so programs of both kinds
share a launch, of which one image has too many. A gate of a pixel is a sum over 49 pixels, which a thread takes one by one, as
its neighbours do, from the cache. For the gates of channels a program merges what others saw of shares of an image, squeezes
the whole vector, which is little, and expands a block of it. Gates are float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.backends.triton import device
from hifuse_fast.backends.triton.launch import blocks, launch
from hifuse_fast.ops.functions.concat_norm import triton as concat_norm
from hifuse_fast.ops.prepared.gated_concat import launched

why_not = concat_norm.why_not

# ---- Kernels -----------------------------------------------------------------------------------------------------------


@triton.jit
def _of_pixels(x_ptr, out_ptr, program, rows, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Of some rows of a map [rows, C]: the largest value and the mean, [rows, 2]."""
    row = program.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    channel = tl.arange(0, BLOCK_C)[None, :]
    kept = (row[:, None] < rows) & (channel < C)
    x = tl.load(x_ptr + row[:, None] * C + channel, mask=kept, other=0.0).to(tl.float32)
    largest = device.largest(tl.where(kept, x, float("-inf")), 1)
    tl.store(out_ptr + 2 * row, largest.to(out_ptr.dtype.element_ty), mask=row < rows)
    tl.store(out_ptr + 2 * row + 1, (tl.sum(x, 1) / C).to(out_ptr.dtype.element_ty), mask=row < rows)


@triton.jit
def _of_channels(
    x_ptr, partial_ptr, program, pixels, shares, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Of a share of the pixels of an image [B, pixels, C], some channels: the largest value and the sum, [B, shares, 2, C]."""
    channel = program % tl.cdiv(C, BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    part = program // tl.cdiv(C, BLOCK_C)  # the image and the share
    share, image = part % shares, (part // shares).to(tl.int64)
    per_share = tl.cdiv(pixels, shares)
    end = tl.minimum((share + 1) * per_share, pixels)
    # By row of the tile, so that threads meet once at the end, and not for each tile.
    largest = tl.full([BLOCK_R, BLOCK_C], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    x_ptr += image * pixels * C
    for start in range(share * per_share, end, BLOCK_R):
        pixel = start + tl.arange(0, BLOCK_R)[:, None]
        kept = (pixel < end) & (channel[None, :] < C)
        x = tl.load(x_ptr + (pixel.to(tl.int64) * C + channel[None, :]), mask=kept, other=float("-inf")).to(tl.float32)
        total += tl.where(kept, x, 0.0)
        largest = tl.maximum(largest, x, propagate_nan=tl.PropagateNan.ALL)
    partial_ptr += part.to(tl.int64) * 2 * C + channel
    tl.store(partial_ptr, device.largest(largest, 0), mask=channel < C)
    tl.store(partial_ptr + C, tl.sum(total, 0), mask=channel < C)


@triton.jit
def _statistics_kernel(
    local_ptr,  # [B, pixels, C]
    global_ptr,  # [B, pixels, C]
    statistics_ptr,  # [B, pixels, 2]: largest value, mean
    partial_ptr,  # [B, shares, 2, C] float32: largest value, sum
    rows, pixels, shares, programs,  # rows: of all images; programs: those that take a share of an image
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, SHARE_R: tl.constexpr, SHARE_C: tl.constexpr,
):  # fmt: skip
    if tl.program_id(0) < programs:
        _of_channels(global_ptr, partial_ptr, tl.program_id(0), pixels, shares, C, SHARE_R, SHARE_C)
    else:
        _of_pixels(local_ptr, statistics_ptr, tl.program_id(0) - programs, rows, C, BLOCK_R, BLOCK_C)


@triton.jit
def _pixel_gates(statistics_ptr, filters_ptr, bias_ptr, gate_ptr, program, rows, height, width, BLOCK: tl.constexpr):
    """sigmoid(conv(statistics) + bias) of some pixels."""
    first = program.to(tl.int64) * BLOCK
    i = tl.arange(0, BLOCK)
    pixel = first + i
    x, y = (pixel % width).to(tl.int32), (pixel // width % height).to(tl.int32)
    statistics_ptr += 2 * first
    total = tl.zeros([BLOCK], tl.float32)
    for dy in tl.static_range(-3, 4):
        row = (pixel < rows) & (y + dy >= 0) & (y + dy < height)
        for dx in tl.static_range(-3, 4):
            kept = row & (x + dx >= 0) & (x + dx < width)
            place = statistics_ptr + 2 * (i + (dy * width + dx))
            tap = filters_ptr + 2 * (7 * (dy + 3) + dx + 3)
            total += tl.load(place, mask=kept, other=0.0).to(tl.float32) * tl.load(tap)
            total += tl.load(place + 1, mask=kept, other=0.0).to(tl.float32) * tl.load(tap + 1)
    tl.store(gate_ptr + pixel, tl.sigmoid(total + tl.load(bias_ptr)), mask=pixel < rows)


@triton.jit
def _channel_gates(
    partial_ptr, squeeze_ptr, expand_ptr, gate_ptr, program, pixels, shares,
    C: tl.constexpr, S: tl.constexpr, TWICE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """sigmoid(se(largest value) + se(mean)) of some channels of an image."""
    image = (program // tl.cdiv(C, BLOCK_C)).to(tl.int64)
    s = tl.arange(0, BLOCK_S)
    of_largest = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    of_mean = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    for k in range(0, C, BLOCK_C):
        channel = k + tl.arange(0, BLOCK_C)[None, :]
        largest = tl.full([1, BLOCK_C], float("-inf"), tl.float32)
        total = tl.zeros([1, BLOCK_C], tl.float32)
        for share in range(shares):
            place = partial_ptr + 2 * (image * shares + share) * C + channel
            of_share = tl.load(place, mask=channel < C, other=0.0)
            largest = tl.maximum(largest, of_share, propagate_nan=tl.PropagateNan.ALL)
            total += tl.load(place + C, mask=channel < C, other=0.0)
        kept = (s[:, None] < S) & (channel < C)
        squeeze = tl.load(squeeze_ptr + s[:, None] * C + channel, mask=kept, other=0.0)
        # Beyond the map 0 times infinity would be NaN.
        of_largest += tl.where(kept, squeeze * largest, 0.0)
        of_mean += tl.where(kept, squeeze * (total / pixels), 0.0)
    squeezed = tl.maximum(tl.sum(of_largest, 1), 0.0, propagate_nan=tl.PropagateNan.ALL)
    squeezed += tl.maximum(tl.sum(of_mean, 1), 0.0, propagate_nan=tl.PropagateNan.ALL)
    channel = program % tl.cdiv(C, BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    kept = (channel[:, None] < C) & (s[None, :] < S)
    expand = tl.load(expand_ptr + channel[:, None] * S + s[None, :], mask=kept, other=0.0)
    gate = tl.sigmoid(tl.sum(expand * squeezed[None, :], 1))
    if TWICE:
        gate = tl.sigmoid(gate)
    tl.store(gate_ptr + image * C + channel, gate, mask=channel < C)


@triton.jit
def _gates_kernel(
    statistics_ptr,  # [B, height, width, 2]: largest value, mean
    filters_ptr,  # [7, 7, 2] float32
    bias_ptr,  # [1] float32
    partial_ptr,  # [B, shares, 2, C] float32: largest value, sum
    squeeze_ptr,  # [S, C] float32
    expand_ptr,  # [C, S] float32
    pixel_gate_ptr,  # [B, height, width] float32
    channel_gate_ptr,  # [B, C] float32
    rows, height, width, shares, programs,  # rows: pixels of all images; programs: those that take channels
    C: tl.constexpr, S: tl.constexpr, TWICE: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    if tl.program_id(0) < programs:
        _channel_gates(
            partial_ptr, squeeze_ptr, expand_ptr, channel_gate_ptr, tl.program_id(0), height * width, shares,
            C, S, TWICE, BLOCK_S, BLOCK_C,
        )  # fmt: skip
    else:
        _pixel_gates(
            statistics_ptr, filters_ptr, bias_ptr, pixel_gate_ptr, tl.program_id(0) - programs, rows, height, width, BLOCK
        )  # fmt: skip


# ---- Launchers ---------------------------------------------------------------------------------------------------------


def statistics(local_map: Tensor, global_map: Tensor) -> tuple[Tensor, Tensor]:
    """Of each pixel of the one, largest value and mean, [B, H, W, 2]; of each channel of the other in shares of its pixels,
    largest value and sum, [B, shares, 2, C] float32.
    """
    batch, height, width, channels = local_map.shape
    config = dict(tables.lookup("gates_statistics", tables.key(channels), tables.architecture(local_map.device)))
    elements, wanted, whole = config.pop("elements"), config.pop("programs"), triton.next_power_of_2(channels)
    share_c = min(whole, config.pop("channels"))
    block_r, share_r = (max(1, elements // block) for block in (whole, share_c))
    of_channels = blocks(channels, share_c)
    shares = max(1, min(wanted // max(1, batch * of_channels), blocks(height * width, share_r)))
    of_pixels = local_map.new_empty((batch, height, width, 2))
    partial = local_map.new_empty((batch, shares, 2, channels), dtype=torch.float32)
    rows, programs = batch * height * width, batch * shares * of_channels
    launch(
        _statistics_kernel, (programs + blocks(rows, block_r),), local_map, global_map, of_pixels, partial,
        rows, height * width, shares, programs,
        C=channels, BLOCK_R=block_r, BLOCK_C=whole, SHARE_R=share_r, SHARE_C=share_c, **config,
    )  # fmt: skip
    return of_pixels, partial


# ---- The prepared op ---------------------------------------------------------------------------------------------------


class GatedConcat(launched.GatedConcat):
    """See `prepare_gated_concat`."""

    @torch.no_grad()
    def forward(self, local_map: Tensor, global_map: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        out = x.new_empty((*x.shape[:3], 3 * x.shape[3])) if out is None else out
        gates = [*self._gates(local_map, global_map), None]
        return concat_norm.write([global_map, local_map, x], gates, self.scale, self.shift, self.options["eps"], out)

    def _gates(self, local_map: Tensor, global_map: Tensor) -> tuple[Tensor, Tensor]:
        """Of the channels of the global map, [B, 1, 1, C], and of the pixels of the local one, [B, H, W, 1]."""
        of_pixels, partial = statistics(local_map, global_map)
        (channels, squeezed), (batch, height, width, _) = self.expand.shape, local_map.shape
        of_pixel = local_map.new_empty((batch, height, width, 1), dtype=torch.float32)
        of_channel = local_map.new_empty((batch, 1, 1, channels), dtype=torch.float32)
        config = dict(tables.lookup("gates", "*", tables.architecture(local_map.device)))
        block, block_s = config.pop("pixels"), triton.next_power_of_2(squeezed)
        block_c = min(triton.next_power_of_2(channels), max(1, config.pop("elements") // block_s))
        rows, programs = batch * height * width, batch * blocks(channels, block_c)
        launch(
            _gates_kernel, (programs + blocks(rows, block),),
            of_pixels, self.filters, self.filter_bias, partial, self.squeeze, self.expand, of_pixel, of_channel,
            rows, height, width, partial.shape[1], programs, C=channels, S=squeezed, TWICE=self.options["double_sigmoid"],
            BLOCK=block, BLOCK_S=block_s, BLOCK_C=block_c, **config,
        )  # fmt: skip
        return of_channel, of_pixel
