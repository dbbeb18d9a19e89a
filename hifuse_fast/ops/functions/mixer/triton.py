"""The mixer in Triton: the dense convolution as one kernel or the vendor's with a small kernel after it; the depthwise one.

The table of tile sizes says which of the two a dense convolution is, by the channels (`fused`). The one kernel is a matrix
product over taps and channels, a tile of pixels by a tile of results: the nine taps of some channels follow each other, so that
they find the neighbours of their pixels in the caches. The backward is composed: GELU's derivative, then the gradients of the
convolution, the vendor's if it is dense, those of `depthwise_norm` if not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.backends.triton import device, pointwise
from hifuse_fast.backends.triton.launch import blocks, launch, precision, strided
from hifuse_fast.backends.triton.launch import why_not as why_not_triton
from hifuse_fast.ops.functions.depthwise_norm import triton as depthwise_norm


def why_not(*, device: torch.device, dtype: torch.dtype, **_: Any) -> str | None:
    """The reason the Triton kernels cannot serve this call, or None."""
    return why_not_triton(device, dtype)


# ---- Kernels -----------------------------------------------------------------------------------------------------------


@triton.jit
def on_map(i, size):
    """Whether 0 <= i < size, in one comparison: as an unsigned number -1 is large."""
    return i.to(tl.uint32) < size


@triton.jit
def _dense_kernel(
    z_ptr,  # [B, height, width, C]
    weight_ptr,  # [C, 9, C]: of each result and tap
    out_ptr,  # [B, height, width, C]
    c_ptr,  # [B, height, width, C] or None: what goes into GELU
    pixels, height, width,
    C: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # The tiles of a pixel lie next to each other in program order: z comes from memory once.
    tile = tl.program_id(0) // tl.cdiv(C, BLOCK_N)
    n = tl.program_id(0) % tl.cdiv(C, BLOCK_N) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    start = tl.arange(0, BLOCK_M)[:, None] * C  # of pixels within the tile, where 32 bits do
    pixel = tile * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    x, y = pixel % width, pixel // width % height
    first = tile.to(tl.int64) * BLOCK_M * C
    z_ptr += first
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(9 * tl.cdiv(C, BLOCK_K)):
        tap = step % 9
        dy, dx = tap // 3 - 1, tap % 3 - 1
        k = step // 9 * BLOCK_K
        column, depth = k + tl.arange(0, BLOCK_K)[None, :], k + tl.arange(0, BLOCK_K)[:, None]
        kept = (pixel < pixels) & on_map(y + dy, height) & on_map(x + dx, width) & (column < C)
        z = tl.load(z_ptr + (start + ((dy * width + dx) * C + column)), mask=kept, other=0.0)
        weight = tl.load(weight_ptr + (n * (9 * C) + (tap * C + depth)), mask=(n < C) & (depth < C), other=0.0)
        acc = device.dot(z.to(weight.dtype), weight, PRECISION, acc)

    kept = (pixel < pixels) & (n < C)
    if c_ptr is not None:
        tl.store(c_ptr + first + (start + n), acc.to(c_ptr.dtype.element_ty), mask=kept)
    acc = device.gelu(acc, weight_ptr.dtype.element_ty) + tl.load(z_ptr + (start + n), mask=kept, other=0.0).to(tl.float32)
    tl.store(out_ptr + first + (start + n), acc.to(out_ptr.dtype.element_ty), mask=kept)


@triton.jit
def _depthwise_kernel(
    z_ptr,  # [B, height, width, C]
    weight_ptr,  # [9, C]
    out_ptr,  # [B, height, width, C]
    c_ptr,  # [B, height, width, C] or None: what goes into GELU
    pixels, height, width,
    C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0).to(tl.int64)
    pixel = tile * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    place = tl.arange(0, BLOCK_P)[:, None] * C + column
    x, y = (pixel % width).to(tl.int32), (pixel // width % height).to(tl.int32)
    first = tile * BLOCK_P * C
    z_ptr += first
    acc = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for tap in tl.static_range(9):
        kept = (pixel < pixels) & on_map(y + (tap // 3 - 1), height) & on_map(x + (tap % 3 - 1), width) & (column < C)
        z = tl.load(z_ptr + (place + ((tap // 3 - 1) * width + (tap % 3 - 1)) * C), mask=kept, other=0.0)
        weight = tl.load(weight_ptr + (tap * C + column), mask=column < C, other=0.0)
        acc += z.to(weight.dtype).to(tl.float32) * weight.to(tl.float32)

    kept = (pixel < pixels) & (column < C)
    if c_ptr is not None:
        tl.store(c_ptr + first + place, acc.to(c_ptr.dtype.element_ty), mask=kept)
    acc = device.gelu(acc, weight_ptr.dtype.element_ty) + tl.load(z_ptr + place, mask=kept, other=0.0).to(tl.float32)
    tl.store(out_ptr + first + place, acc.to(out_ptr.dtype.element_ty), mask=kept)


# ---- Launchers ---------------------------------------------------------------------------------------------------------


def forward(z: Tensor, weight: Tensor, *, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """See `hifuse_fast.ops.mixer`; arguments are validated, the convolution is in the dtype of `weight`.

    The second result is what goes into GELU, [B, H, W, C], where it is to be kept; else it is empty.
    """
    out, c = write(z, weight, keep, z.new_empty(z.shape, dtype=torch.promote_types(weight.dtype, z.dtype)))
    return out, [c] if keep else []


def write(z: Tensor, weight: Tensor, keep: bool, out: Tensor) -> tuple[Tensor, Tensor]:
    """`forward` into `out`, contiguous, which is returned."""
    batch, height, width, channels = z.shape
    pixels = batch * height * width
    z = z.contiguous()
    c = weight.new_empty(z.shape if keep else 0)
    if weight.shape[1] == 1:
        config = dict(tables.lookup("mixer_depthwise", "*", tables.architecture(z.device)))
        block = min(config.pop("channels"), triton.next_power_of_2(channels))
        rows = max(1, config.pop("elements") // block)
        launch(
            _depthwise_kernel, (blocks(pixels, rows), blocks(channels, block)),
            z, weight.reshape(channels, 9).t().contiguous(), out, c if keep else None, pixels, height, width,
            C=channels, BLOCK_P=rows, BLOCK_C=block, **config,
        )  # fmt: skip
        return out, c

    config = dict(tables.lookup("mixer_dense", tables.key(channels, dtype=weight.dtype), tables.architecture(z.device)))
    if config.pop("fused") and pixels < 2**31 and weight.numel() < 2**31:
        launch(
            _dense_kernel, (blocks(pixels, config["BLOCK_M"]) * blocks(channels, config["BLOCK_N"]),),
            z, weight.permute(0, 2, 3, 1).contiguous(), out, c if keep else None, pixels, height, width,
            C=channels, PRECISION=precision(weight.dtype), **config,
        )  # fmt: skip
        return out, c

    product = F.conv2d(_channels_last(z.to(weight.dtype)), _weight(weight), padding=1).permute(0, 2, 3, 1).contiguous()
    pointwise.finish(product, z, out, gelu=True)
    return out, product if keep else c


def backward(
    grad: Tensor, z: Tensor, weight: Tensor, *, kept: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of z and weight. What went into GELU was kept."""
    (c,), (need_z, need_weight) = kept, needs
    channels, depth = weight.shape[:2]
    grad, dc = grad.contiguous(), torch.empty_like(c)
    pointwise.gelu_backward(grad.view(-1, channels), c.view(-1, channels), dc.view(-1, channels), need_bias=False)
    if depth == 1:
        dz, dweight = depthwise_norm.backward_convolution(dc, strided(z), weight, needs)
    else:
        found = torch.ops.aten.convolution_backward(
            _channels_last(dc), _channels_last(z.to(dc.dtype)), _weight(weight), None,
            [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [need_z, need_weight, False],
        )  # fmt: skip
        dz, dweight = found[0].permute(0, 2, 3, 1) if need_z else None, found[1]
    return [None if dz is None else grad + dz, dweight]


def _channels_last(x: Tensor) -> Tensor:
    """[B, H, W, C] -> [B, C, H, W] in channels-last memory."""
    return x.contiguous().permute(0, 3, 1, 2)


def _weight(weight: Tensor) -> Tensor:
    """[C, C, 3, 3] in channels-last memory."""
    return weight.contiguous(memory_format=torch.channels_last)
