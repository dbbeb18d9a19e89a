"""The prepared mixer in Triton: the function's kernels, or Winograd's F(2x2, 3x3) around the vendor's batched product.

Winograd's algorithm takes tiles of 2x2 results. The first kernel transforms the 4x4 pixels around each to 16 numbers a channel;
16 products of the vendor's multiply them with as many transformed filters, 4/9 of the direct multiplications; the second kernel
transforms 16 sums back to 4 results, and applies GELU and the residual. Both transforms move bytes and little else. Tiles that
reach over the map read zeros there, and write nothing.

Filters of 16 bits are transformed in float32 and rounded once, and so are the inputs and the sums of the products. The error
stays within the tolerance rule: the largest one is 0.8 to 1.2 times that of PyTorch, which rounds the convolution, GELU and the
sum. Sums in float32 would err 0.7 to 1.0 times as much, for twice the bytes (counted with PyTorch on a CPU, 13 shapes). In
float16 a sum of four values would leave the range from 16 000 on, so there is none.

The table says from how many pixels of a call on Winograd's is the faster (`pixels`, 0 for never). Of one image the filters are
what a call waits for, and there are 16/9 as many: so an op that the table may serve either way keeps both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.backends.triton import device
from hifuse_fast.backends.triton.launch import blocks, launch
from hifuse_fast.backends.triton.launch import why_not as why_not_triton
from hifuse_fast.ops.functions.mixer import triton as mixer
from hifuse_fast.ops.prepared.base import Layout, PreparedOp

DIRECT, WINOGRAD, EITHER = "direct", "winograd2", "direct_or_winograd2"
PRODUCTS = 16  # of a tile
# Rows (1, w) -> numbers of a filter at the points 0, 1, -1 and infinity, along one axis.
FILTER = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
MOST_PIXELS = 2**31 - 1  # of the images whose tiles one pass takes: they are counted in 32 bits


def why_not(
    *, device: torch.device, dtype: torch.dtype, algorithm: str = "auto", input_scale: float | None = None, **_: Any
) -> str | None:
    """The reason the Triton kernels cannot serve this call, or None."""
    if input_scale is not None:
        return "there is no Triton kernel in int8"
    if algorithm not in ("auto", DIRECT, WINOGRAD, EITHER):
        known = "the direct one and Winograd's F(2x2, 3x3) (algorithm 'direct' or 'winograd2')"
        return f"its convolutions are {known}, not {algorithm!r}"
    if algorithm in (WINOGRAD, EITHER) and dtype == torch.float16:
        return (
            "Winograd's algorithm adds four values before it multiplies, which float16 cannot hold: take 'direct', or bfloat16"
        )
    return why_not_triton(device, dtype)


# ---- Kernels -----------------------------------------------------------------------------------------------------------


@triton.jit
def _first_pixel(tile, height, width):
    """The pixel, of all images, at the upper left of the 2x2 results of a tile; and its row and column in its image."""
    across, down = tl.cdiv(width, 2), tl.cdiv(height, 2)
    x, y = 2 * (tile % across), 2 * (tile // across % down)
    return (tile // (across * down) * height + y) * width + x, y, x


@triton.jit
def _input_row(z_ptr, place, y, x, kept, height, width, C: tl.constexpr):
    """The four pixels of the row y from x - 1 on, at `place` the second of them, transformed along the row."""
    row = kept & mixer.on_map(y, height)
    d0 = tl.load(z_ptr + (place - C), mask=row & mixer.on_map(x - 1, width), other=0.0).to(tl.float32)
    d1 = tl.load(z_ptr + place, mask=row, other=0.0).to(tl.float32)
    d2 = tl.load(z_ptr + (place + C), mask=row & mixer.on_map(x + 1, width), other=0.0).to(tl.float32)
    d3 = tl.load(z_ptr + (place + 2 * C), mask=row & mixer.on_map(x + 2, width), other=0.0).to(tl.float32)
    return d0 - d2, d1 + d2, d2 - d1, d1 - d3


@triton.jit
def _store_column(v_ptr, place, plane, kept, a0, a1, a2, a3):
    """Transform a column of four numbers, and store it to the planes 0, 4, 8 and 12 from v_ptr on."""
    dtype = v_ptr.dtype.element_ty
    tl.store(v_ptr + place, (a0 - a2).to(dtype), mask=kept)
    tl.store(v_ptr + (place + 4 * plane), (a1 + a2).to(dtype), mask=kept)
    tl.store(v_ptr + (place + 8 * plane), (a2 - a1).to(dtype), mask=kept)
    tl.store(v_ptr + (place + 12 * plane), (a1 - a3).to(dtype), mask=kept)


@triton.jit
def _winograd_input_kernel(
    z_ptr,  # [B, height, width, C]
    v_ptr,  # [16, tiles, C]
    first, tiles, height, width,  # of the tiles of all images these are first, first + 1, ...
    C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0) * BLOCK_T
    local = start + tl.arange(0, BLOCK_T)[:, None]
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    origin, _, _ = _first_pixel(first + start, height, width)
    pixel, y, x = _first_pixel(first + local, height, width)
    z_ptr += origin.to(tl.int64) * C
    place = (pixel - origin) * C + column  # within the tiles of a program 32 bits do
    kept = (local < tiles) & (column < C)
    step = width * C
    a0, b0, c0, d0 = _input_row(z_ptr, place - step, y - 1, x, kept, height, width, C)
    a1, b1, c1, d1 = _input_row(z_ptr, place, y, x, kept, height, width, C)
    a2, b2, c2, d2 = _input_row(z_ptr, place + step, y + 1, x, kept, height, width, C)
    a3, b3, c3, d3 = _input_row(z_ptr, place + 2 * step, y + 2, x, kept, height, width, C)
    plane = tiles * C  # the room of a part is less than 2^31 numbers
    place = local * C + column
    _store_column(v_ptr, place, plane, kept, a0, a1, a2, a3)
    _store_column(v_ptr, place + plane, plane, kept, b0, b1, b2, b3)
    _store_column(v_ptr, place + 2 * plane, plane, kept, c0, c1, c2, c3)
    _store_column(v_ptr, place + 3 * plane, plane, kept, d0, d1, d2, d3)


@triton.jit
def _output_column(m_ptr, place, plane, kept):
    """The sums of one column of a tile, of the planes 0, 4, 8 and 12 from m_ptr on, transformed along the column."""
    m0 = tl.load(m_ptr + place, mask=kept, other=0.0).to(tl.float32)
    m1 = tl.load(m_ptr + (place + 4 * plane), mask=kept, other=0.0).to(tl.float32)
    m2 = tl.load(m_ptr + (place + 8 * plane), mask=kept, other=0.0).to(tl.float32)
    m3 = tl.load(m_ptr + (place + 12 * plane), mask=kept, other=0.0).to(tl.float32)
    return m0 + m1 + m2, m1 - m2 - m3


@triton.jit
def _store_result(z_ptr, out_ptr, place, kept, c):
    """z + gelu(c)"""
    z = tl.load(z_ptr + place, mask=kept, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, (device.gelu(c, z_ptr.dtype.element_ty) + z).to(out_ptr.dtype.element_ty), mask=kept)


@triton.jit
def _winograd_output_kernel(
    m_ptr,  # [16, tiles, C]
    z_ptr,  # [B, height, width, C]
    out_ptr,  # [B, height, width, C]
    first, tiles, height, width,
    C: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0) * BLOCK_T
    local = start + tl.arange(0, BLOCK_T)[:, None]
    column = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    plane = tiles * C
    place = local * C + column
    kept = (local < tiles) & (column < C)
    a0, a1 = _output_column(m_ptr, place, plane, kept)
    b0, b1 = _output_column(m_ptr, place + plane, plane, kept)
    c0, c1 = _output_column(m_ptr, place + 2 * plane, plane, kept)
    d0, d1 = _output_column(m_ptr, place + 3 * plane, plane, kept)

    origin, _, _ = _first_pixel(first + start, height, width)
    pixel, y, x = _first_pixel(first + local, height, width)
    z_ptr += origin.to(tl.int64) * C
    out_ptr += origin.to(tl.int64) * C
    place = (pixel - origin) * C + column
    right, below = mixer.on_map(x + 1, width), mixer.on_map(y + 1, height)
    _store_result(z_ptr, out_ptr, place, kept, a0 + b0 + c0)
    _store_result(z_ptr, out_ptr, place + C, kept & right, b0 - c0 - d0)
    _store_result(z_ptr, out_ptr, place + width * C, kept & below, a1 + b1 + c1)
    _store_result(z_ptr, out_ptr, place + (width + 1) * C, kept & right & below, b1 - c1 - d1)


# ---- Launchers ---------------------------------------------------------------------------------------------------------


def transform_filters(weight: Tensor) -> Tensor:
    """[16, C, C] of a weight [C, C, 3, 3]: for each product, results by channels; in float32."""
    matrix = weight.new_tensor(FILTER, dtype=torch.float32)
    return torch.einsum("ir,ncrs,js->ijnc", matrix, weight.float(), matrix).reshape(PRODUCTS, *weight.shape[:2])


def winograd(z: Tensor, filters: Tensor, out: Tensor, scratch: int) -> Tensor:
    """z + gelu(conv(z)) into `out`, by as many tiles at a time as have their numbers in `scratch` KiB; maps are contiguous."""
    if z.numel() == 0:
        return out
    batch, height, width, channels = z.shape
    of_image = blocks(height, 2) * blocks(width, 2)
    size = _part(batch * of_image, 2 * PRODUCTS * channels * z.itemsize, scratch)
    room = z.new_empty((2, PRODUCTS * size * channels))
    images = max(1, MOST_PIXELS // (height * width))
    for part_of_z, part_of_out in zip(z.split(images), out.split(images), strict=True):
        tiles = len(part_of_z) * of_image
        for first in range(0, tiles, size):
            now = min(size, tiles - first)
            v, m = (each[: PRODUCTS * now * channels].view(PRODUCTS, now, channels) for each in room)
            geometry = (first, now, height, width)
            _launch("mixer_winograd_input", _winograd_input_kernel, now, channels, part_of_z, v, *geometry)
            torch.bmm(v, filters.transpose(1, 2), out=m)
            _launch("mixer_winograd_output", _winograd_output_kernel, now, channels, m, part_of_z, part_of_out, *geometry)
    return out


def _part(tiles: int, tile_bytes: int, scratch: int) -> int:
    """How many tiles a part has: a multiple of 16, and all parts about the same."""
    groups = blocks(tiles, 16)
    return 16 * blocks(groups, blocks(groups, max(1, scratch * 1024 // (16 * tile_bytes))))


def _launch(section: str, kernel: Any, tiles: int, channels: int, *args: Any) -> None:
    config = dict(tables.lookup(section, tables.key(channels, dtype=args[0].dtype), tables.architecture(args[0].device)))
    block = min(config.pop("channels"), triton.next_power_of_2(channels))
    rows = max(1, config.pop("elements") // block)
    grid = (blocks(tiles, rows), blocks(channels, block))
    launch(kernel, grid, *args, C=channels, BLOCK_T=rows, BLOCK_C=block, **config)


# ---- The prepared op ---------------------------------------------------------------------------------------------------


class Mixer(PreparedOp):
    """See `prepare_mixer`. It has the one, the other or both of its tensors, as its algorithm says."""

    weight: Tensor  # in the order that its kernel reads: [C, 3, 3, C], or depthwise [3, 3, C, 1]
    filters: Tensor  # [16, C, C], transformed

    @staticmethod
    def resolve(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Any]:
        weight, algorithm = tensors["weight"], options["algorithm"]
        if _is_depthwise(weight.shape):
            algorithm = DIRECT
        elif algorithm == "auto":
            possible = dtype != torch.float16 and _config(len(weight), dtype, weight.device)["pixels"] > 0
            algorithm = EITHER if possible else DIRECT
        return {**options, "algorithm": algorithm}

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        weight, algorithm = tensors["weight"], options["algorithm"]
        order = (2, 3, 0, 1) if _is_depthwise(weight.shape) else (0, 2, 3, 1)
        packed = {} if algorithm == WINOGRAD else {"weight": weight.permute(order)}
        if algorithm != DIRECT:
            packed["filters"] = transform_filters(weight)
        return PreparedOp.pack(packed, dtype)

    @staticmethod
    def layout(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, **options: Any) -> Layout:
        channels, depth = shapes["weight"][:2]
        weight = (3, 3, channels, 1) if _is_depthwise(shapes["weight"]) else (channels, 3, 3, depth)
        both = {"weight": (weight, dtype), "filters": ((PRODUCTS, channels, depth), dtype)}
        return {name: both[name] for name in _NAMES[options["algorithm"]]}

    @torch.no_grad()
    def forward(self, z: Tensor, out: Tensor | None = None) -> Tensor:
        out, algorithm = torch.empty_like(z) if out is None else out, self.options["algorithm"]
        if algorithm != DIRECT:
            config = _config(z.shape[3], z.dtype, z.device)
            if algorithm == WINOGRAD or 0 < config["pixels"] <= z.numel() // z.shape[3]:
                return winograd(z, self.filters, out, config["scratch"])
        depthwise = self.weight.shape[3] < z.shape[3]
        weight = self.weight.permute((2, 3, 0, 1) if depthwise else (0, 3, 1, 2))
        return mixer.write(z, weight, False, out)[0]


_NAMES = {DIRECT: ("weight",), WINOGRAD: ("filters",), EITHER: ("weight", "filters")}


def _is_depthwise(shape: tuple[int, ...]) -> bool:
    return shape[1] < shape[0]


def _config(channels: int, dtype: torch.dtype, device: torch.device) -> tables.Config:
    return tables.lookup("mixer_winograd", tables.key(channels, dtype=dtype), tables.architecture(device))
