"""The gated concatenation in Triton: what the gates look at, the gates, and the concatenation with its norm.

A gate of a pixel is a sum over 49 pixels, which a thread takes one by one, as its neighbours do, from the cache. For the gates
of channels a program squeezes the whole vector of an image, which is little, and expands a block of it. Gates are float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.backends.triton.launch import blocks, launch
from hifuse_fast.ops.functions.concat_norm import triton as concat_norm
from hifuse_fast.ops.functions.max_mean import triton as max_mean
from hifuse_fast.ops.prepared.gated_concat import launched

why_not = concat_norm.why_not

# ---- Kernels -----------------------------------------------------------------------------------------------------------


@triton.jit
def _pixel_gates_kernel(
    statistics_ptr,  # [B, height, width, 2]: largest value, mean
    filters_ptr,  # [7, 7, 2] float32
    bias_ptr,  # [1] float32
    gate_ptr,  # [B, height, width] float32
    pixels, height, width,
    BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BLOCK
    i = tl.arange(0, BLOCK)
    pixel = first + i
    x, y = (pixel % width).to(tl.int32), (pixel // width % height).to(tl.int32)
    statistics_ptr += 2 * first
    total = tl.zeros([BLOCK], tl.float32)
    for dy in tl.static_range(-3, 4):
        row = (pixel < pixels) & (y + dy >= 0) & (y + dy < height)
        for dx in tl.static_range(-3, 4):
            kept = row & (x + dx >= 0) & (x + dx < width)
            place = statistics_ptr + 2 * (i + (dy * width + dx))
            tap = filters_ptr + 2 * (7 * (dy + 3) + dx + 3)
            total += tl.load(place, mask=kept, other=0.0).to(tl.float32) * tl.load(tap)
            total += tl.load(place + 1, mask=kept, other=0.0).to(tl.float32) * tl.load(tap + 1)
    tl.store(gate_ptr + pixel, tl.sigmoid(total + tl.load(bias_ptr)), mask=pixel < pixels)


@triton.jit
def _channel_gates_kernel(
    statistics_ptr,  # [B, 2, C]: largest value, mean
    squeeze_ptr,  # [S, C]
    expand_ptr,  # [C, S]
    gate_ptr,  # [B, C] float32
    C: tl.constexpr, S: tl.constexpr, TWICE: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    s = tl.arange(0, BLOCK_S)
    of_largest = tl.zeros([BLOCK_S, BLOCK_K], tl.float32)
    of_mean = tl.zeros([BLOCK_S, BLOCK_K], tl.float32)
    for k in range(0, C, BLOCK_K):
        channel = k + tl.arange(0, BLOCK_K)[None, :]
        place = statistics_ptr + 2 * image * C + channel
        kept = (s[:, None] < S) & (channel < C)
        squeeze = tl.load(squeeze_ptr + s[:, None] * C + channel, mask=kept, other=0.0).to(tl.float32)
        of_largest += squeeze * tl.load(place, mask=channel < C, other=0.0).to(tl.float32)
        of_mean += squeeze * tl.load(place + C, mask=channel < C, other=0.0).to(tl.float32)
    squeezed = tl.maximum(tl.sum(of_largest, 1), 0.0, propagate_nan=tl.PropagateNan.ALL)
    squeezed += tl.maximum(tl.sum(of_mean, 1), 0.0, propagate_nan=tl.PropagateNan.ALL)
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    kept = (channel[:, None] < C) & (s[None, :] < S)
    expand = tl.load(expand_ptr + channel[:, None] * S + s[None, :], mask=kept, other=0.0).to(tl.float32)
    gate = tl.sigmoid(tl.sum(expand * squeezed[None, :], 1))
    if TWICE:
        gate = tl.sigmoid(gate)
    tl.store(gate_ptr + image * C + channel, gate, mask=channel < C)


# ---- Launchers ---------------------------------------------------------------------------------------------------------


def pixel_gates(x: Tensor, filters: Tensor, bias: Tensor) -> Tensor:
    """[B, H, W, 1] of a map; filters [7, 7, 2] and bias [1] are float32."""
    statistics = max_mean.forward(x, keep=False, over="channels")[0]
    gates = x.new_empty((*x.shape[:3], 1), dtype=torch.float32)
    config = dict(tables.lookup("pixel_gates", "*", tables.architecture(x.device)))
    block, pixels = config.pop("pixels"), gates.numel()
    launch(
        _pixel_gates_kernel, (blocks(pixels, block),), statistics, filters, bias, gates, pixels, *x.shape[1:3],
        BLOCK=block, **config,
    )  # fmt: skip
    return gates


def channel_gates(x: Tensor, squeeze: Tensor, expand: Tensor, twice: bool) -> Tensor:
    """[B, 1, 1, C] of a map; squeeze is [S, C], expand [C, S]."""
    statistics = max_mean.forward(x, keep=False, over="pixels")[0]
    channels, squeezed = expand.shape
    gates = x.new_empty((x.shape[0], 1, 1, channels), dtype=torch.float32)
    config = dict(tables.lookup("channel_gates", "*", tables.architecture(x.device)))
    block_s = triton.next_power_of_2(squeezed)
    block = min(triton.next_power_of_2(channels), max(1, config.pop("elements") // block_s))
    launch(
        _channel_gates_kernel, (blocks(channels, block), x.shape[0]), statistics, squeeze, expand, gates,
        C=channels, S=squeezed, TWICE=twice, BLOCK_S=block_s, BLOCK_K=block, BLOCK_C=block, **config,
    )  # fmt: skip
    return gates


# ---- The prepared op ---------------------------------------------------------------------------------------------------


class GatedConcat(launched.GatedConcat):
    """See `prepare_gated_concat`."""

    @torch.no_grad()
    def forward(self, local_map: Tensor, global_map: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        out = x.new_empty((*x.shape[:3], 3 * x.shape[3])) if out is None else out
        gates = [
            channel_gates(global_map, self.squeeze, self.expand, self.options["double_sigmoid"]),
            pixel_gates(local_map, self.filters, self.filter_bias),
            None,
        ]
        return concat_norm.write([global_map, local_map, x], gates, self.scale, self.shift, self.options["eps"], out)
