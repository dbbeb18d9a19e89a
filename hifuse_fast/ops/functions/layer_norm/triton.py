"""Layer normalisation in Triton.

A program takes whole rows, a block of them at a time: a row is read once, its mean and variance are taken in float32 from
registers. The backward computes them again from x, which it reads anyway. The gradients of weight and bias are added up per
program, over a fixed share of the rows, and then over programs: no atomics, so equal inputs give equal gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.backends.triton.device import normalise
from hifuse_fast.backends.triton.launch import blocks, launch, strided
from hifuse_fast.backends.triton.launch import why_not as why_not_triton

MAX_WIDTH = 16384  # a row has to fit into the registers of a program


def why_not(*, device: torch.device, dtype: torch.dtype, width: int = 1, **_: Any) -> str | None:
    """The reason the Triton kernels cannot serve this call, or None."""
    if width > MAX_WIDTH:
        return f"its rows have at most {MAX_WIDTH} channels, got {width}"
    return why_not_triton(device, dtype)


# ---- Kernels -----------------------------------------------------------------------------------------------------------


@triton.jit
def row_offsets(row, column, height, width, stride_b, stride_y, stride_x, C: tl.constexpr, PATCHES: tl.constexpr):
    """Where element `column` of row `row` lies in a map [B, height, width, C], and whether it lies on the map at all.

    row [R, 1] counts pixels, or 2x2 patches, in int64, or in int32 where they fit (its divisions are cheaper); column [1, K].
    """
    if PATCHES:
        patch_height, patch_width = (height + 1) // 2, (width + 1) // 2
        pixel = column // C
        x = 2 * (row % patch_width) + pixel // 2
        rest = row // patch_width
        y = 2 * (rest % patch_height) + pixel % 2
        batch = rest // patch_height
        channel = column % C
    else:
        x = row % width
        rest = row // width
        y = rest % height
        batch = rest // height
        channel = column
    offset = batch.to(tl.int64) * stride_b + y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x + channel
    return offset, (y < height) & (x < width)


@triton.jit
def _offsets(
    row, column, height, width, stride_b, stride_y, stride_x,
    C: tl.constexpr, PATCHES: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    """As `row_offsets`; FLAT says that rows are the pixels of a contiguous map, which takes no division."""
    if FLAT:
        offset, on_map = row * C + column, row >= 0
    else:
        offset, on_map = row_offsets(row, column, height, width, stride_b, stride_y, stride_x, C, PATCHES)
    return offset, on_map


@triton.jit
def _forward_kernel(
    x_ptr,  # [B, height, width, C], strided
    weight_ptr,  # [K]
    bias_ptr,  # [K]
    out_ptr,  # [rows, K]
    rows, height, width, stride_b, stride_y, stride_x, eps,
    C: tl.constexpr, K: tl.constexpr, PATCHES: tl.constexpr, FLAT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    column = tl.arange(0, BLOCK_K)[None, :]
    kept = (row < rows) & (column < K)
    offset, on_map = _offsets(row, column, height, width, stride_b, stride_y, stride_x, C, PATCHES, FLAT)
    r = tl.load(x_ptr + offset, mask=kept & on_map, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=column < K, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + column, mask=column < K, other=0.0).to(tl.float32)
    normed, _ = normalise(r, column < K, eps, K)
    tl.store(out_ptr + row * K + column, (normed * weight + bias).to(out_ptr.dtype.element_ty), mask=kept)


@triton.jit
def _backward_kernel(
    grad_ptr,  # [rows, K]
    x_ptr,  # [B, height, width, C], strided
    weight_ptr,  # [K]
    dx_ptr,  # [B, height, width, C]
    partial_ptr,  # [2, programs, K] float32: of the gradients of weight and bias
    rows, height, width, stride_b, stride_y, stride_x, eps,
    C: tl.constexpr, K: tl.constexpr, PATCHES: tl.constexpr, FLAT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
    MAP: tl.constexpr, PARAMETERS: tl.constexpr,
):  # fmt: skip
    """MAP and PARAMETERS say whether the gradient of x is needed, and those of weight and bias."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_K)[None, :]
    inside = column < K
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    dweight = tl.zeros([1, BLOCK_K], tl.float32)
    dbias = tl.zeros([1, BLOCK_K], tl.float32)
    for start in range(program * BLOCK_R, rows, tl.num_programs(0).to(tl.int64) * BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)[:, None]
        kept = (row < rows) & inside
        offset, on_map = _offsets(row, column, height, width, stride_b, stride_y, stride_x, C, PATCHES, FLAT)
        r = tl.load(x_ptr + offset, mask=kept & on_map, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + row * K + column, mask=kept, other=0.0).to(tl.float32)
        normed, scale = normalise(r, inside, eps, K)
        if PARAMETERS:
            dweight += tl.sum(grad * normed, 0, keep_dims=True)
            dbias += tl.sum(grad, 0, keep_dims=True)
        if MAP:
            grad *= weight
            along = tl.sum(grad * normed, 1, keep_dims=True) / K
            dr = scale * (grad - tl.sum(grad, 1, keep_dims=True) / K - normed * along)
            offset, _ = _offsets(row, column, height, width, height * width * C, width * C, C, C, PATCHES, not PATCHES)
            tl.store(dx_ptr + offset, dr.to(dx_ptr.dtype.element_ty), mask=kept & on_map)
    if PARAMETERS:
        place = partial_ptr + program * K + column
        tl.store(place, dweight, mask=inside)
        tl.store(place + tl.num_programs(0) * K, dbias, mask=inside)


# ---- Launchers ---------------------------------------------------------------------------------------------------------


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, *, keep: bool, eps: float, rows: str, dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """See `hifuse_fast.ops.layer_norm`; arguments are validated; the result is of `dtype`."""
    return write(x, weight, bias, eps, rows, dtype), []


def write(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, rows: str, dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """`forward` into `out`, contiguous, where that is given."""
    x = strided(x)
    batch, height, width, channels = x.shape
    if rows == "patches":
        height, width, channels = blocks(height, 2), blocks(width, 2), 4 * channels
    out = x.new_empty((batch, height, width, channels), dtype=dtype) if out is None else out
    count, tile, options = _tiles("layer_norm_forward", out)
    launch(
        _forward_kernel, (blocks(count, tile["BLOCK_R"]),), x, weight.contiguous(), bias.contiguous(), out,
        count, *_geometry(x), eps, C=x.shape[3], K=channels, **_rows(x, rows), **tile, **options,
    )  # fmt: skip
    return out


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor,
    *, kept: Sequence[Tensor], needs: Sequence[bool], eps: float, rows: str, dtype: torch.dtype,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of x in its dtype, and of weight and bias in float32: one reading of x gives all."""
    x, grad, (need_map, *need_parameters) = strided(x), grad.contiguous(), needs
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need_map else x
    count, tile, options = _tiles("layer_norm_backward", grad)
    programs = min(options.pop("programs"), blocks(count, tile["BLOCK_R"]))
    partial = x.new_empty((2, programs if any(need_parameters) else 0, grad.shape[3]), dtype=torch.float32)
    launch(
        _backward_kernel, (programs,), grad, x, weight.contiguous(), dx, partial,
        count, *_geometry(x), eps, C=x.shape[3], K=grad.shape[3], **_rows(x, rows), **tile,
        MAP=need_map, PARAMETERS=any(need_parameters), **options,
    )  # fmt: skip
    parameters = [each.sum(0) if need else None for each, need in zip(partial, need_parameters, strict=True)]
    return [dx if need_map else None, *parameters]


def _tiles(kernel: str, rows: Tensor) -> tuple[int, dict[str, int], dict[str, int]]:
    """The number of rows [B, H, W, K], the sides of a tile, and what else is configured."""
    block = triton.next_power_of_2(rows.shape[3])
    config = dict(tables.lookup(kernel, tables.key(block), tables.architecture(rows.device)))
    tile = {"BLOCK_R": max(1, config.pop("elements") // block), "BLOCK_K": block}
    return rows.shape[0] * rows.shape[1] * rows.shape[2], tile, config


def _geometry(x: Tensor) -> tuple[int, ...]:
    """height, width and strides of a map."""
    return (x.shape[1], x.shape[2], *x.stride()[:3])


def _rows(x: Tensor, rows: str) -> dict[str, bool]:
    """What the rows of a map are."""
    return {"PATCHES": rows == "patches", "FLAT": rows == "pixels" and x.is_contiguous()}
