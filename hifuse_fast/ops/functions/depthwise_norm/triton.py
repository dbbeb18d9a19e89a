"""Depthwise 3x3 convolution with layer normalisation in Triton: the launchers. The kernels: triton_kernels.py.

The backward is two kernels. The first convolves again, differentiates the normalisation, and writes dc, the gradient of the
convolution, in the dtype that PyTorch's own has. The second convolves dc with the flipped filters, and multiplies its
neighbours with x, a slice of the channels at a time. Both add up gradients of parameters per program, over a fixed share of the
map, and then over programs: no atomics, so equal inputs give equal gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.backends.triton.launch import blocks, launch, strided
from hifuse_fast.backends.triton.launch import why_not as why_not_triton
from hifuse_fast.ops.functions.depthwise_norm.triton_kernels import (
    backward_filters_kernel,
    backward_norm_kernel,
    forward_kernel,
)

MAX_CHANNELS = 4096  # the filters of all channels have to fit into the registers of a program


def why_not(*, device: torch.device, dtype: torch.dtype, channels: int = 1, width: int = 1, **_: Any) -> str | None:
    """The reason the Triton kernels cannot serve this call, or None."""
    if channels > MAX_CHANNELS:
        return f"its maps have at most {MAX_CHANNELS} channels, got {channels}"
    if channels * width >= 2**31:
        return f"a row of a map has less than 2^31 elements, got {channels * width}"
    return why_not_triton(device, dtype)


def forward(
    x: Tensor, filters: Tensor, filter_bias: Tensor, weight: Tensor, bias: Tensor,
    *, keep: bool, eps: float, taken: torch.dtype, dtype: torch.dtype,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """See `hifuse_fast.ops.depthwise_norm`; arguments are validated."""
    return write(x, filters, filter_bias, weight, bias, eps, taken, dtype), []


def write(
    x: Tensor,
    filters: Tensor,
    filter_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    taken: torch.dtype,
    dtype: torch.dtype,
) -> Tensor:
    """The result alone; x and filters are taken in one dtype, the result is of another."""
    x = strided(x)
    out = x.new_empty(x.shape, dtype=dtype)
    sides, tiles, programs, options = _tiles("depthwise_norm_forward", x)
    launch(
        forward_kernel, (programs,), x, _by_tap(filters), filter_bias.contiguous(), weight.contiguous(), bias.contiguous(),
        out, tiles, *_geometry(x), eps, TAKEN=_triton_dtype(taken), C=x.shape[3], **sides, **options,
    )  # fmt: skip
    return out


def backward(
    grad: Tensor, x: Tensor, filters: Tensor, filter_bias: Tensor, weight: Tensor, bias: Tensor,
    *, kept: Sequence[Tensor], needs: Sequence[bool], eps: float, taken: torch.dtype, dtype: torch.dtype,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of x in its dtype, and in float32 of the filters, and [3, C] of filter_bias, weight and bias."""
    x, grad, taps = strided(x), grad.contiguous(), _by_tap(filters)
    channels, need_convolution, need_parameters = x.shape[3], any(needs[:2]), any(needs[2:])
    shared = {"TAKEN": _triton_dtype(taken), "C": channels, "CONVOLUTION": need_convolution, "PARAMETERS": need_parameters}
    dc = x.new_empty(x.shape if need_convolution else 0, dtype=taken)
    sides, tiles, programs, options = _tiles("depthwise_norm_backward_norm", x)
    sums = x.new_empty((3, programs if need_parameters else 0, channels), dtype=torch.float32)
    launch(
        backward_norm_kernel, (programs,), grad, x, taps, filter_bias.contiguous(), weight.contiguous(), dc, sums,
        tiles, *_geometry(x), eps, **shared, **sides, **options,
    )  # fmt: skip
    parameters = sums.sum(1).unbind() if need_parameters else [None] * 3
    return [*(backward_convolution(dc, x, filters, needs[:2]) if need_convolution else [None] * 2), *parameters]


def backward_convolution(dc: Tensor, x: Tensor, filters: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Of the gradient of a depthwise convolution those of x, in its dtype, and of the filters, in float32, as needed.

    x, its channels side by side, and filters are taken in the dtype of `dc`, which is contiguous.
    """
    channels, (need_map, need_filters) = x.shape[3], needs
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need_map else x
    sides, tiles, programs, options = _tiles("depthwise_norm_backward_filters", x, whole=False)
    slices = blocks(channels, sides["BLOCK_C"])
    dfilters = x.new_empty((programs if need_filters else 0, 9, channels), dtype=torch.float32)
    launch(
        backward_filters_kernel, (slices, programs), dc, x, _by_tap(filters), dx, dfilters,
        tiles, *_geometry(x), TAKEN=_triton_dtype(dc.dtype), C=channels, MAP=need_map, FILTERS=need_filters, **sides, **options,
    )  # fmt: skip
    return [dx if need_map else None, dfilters.sum(0).t().reshape(filters.shape) if need_filters else None]


def _tiles(kernel: str, x: Tensor, *, whole: bool = True) -> tuple[dict[str, int], int, int, dict[str, int]]:
    """The sides of a tile, of all channels or of a slice; how many tiles there are, and programs; what else is configured.

    Tiles have fewer rows than configured where that still leaves no program with two of them.
    """
    batch, height, width, channels = x.shape
    chunks, block = _chunks(channels)
    key = tables.key(block + block // 2 * (chunks - 1), dtype=x.dtype)
    config = dict(tables.lookup(kernel, key, tables.architecture(x.device)))
    elements, run, rows, programs = (config.pop(name) for name in ("elements", "run", "rows", "programs"))
    if not whole:
        chunks, block = 1, min(block, config.pop("channels"))
        programs = blocks(programs, blocks(channels, block))
    run = min(run, width)
    pixels = min(triton.next_power_of_2(blocks(width, run)), max(1, elements // block))
    strips = batch * blocks(width, pixels * run)
    while rows > 1 and strips * blocks(height, blocks(rows, 2)) <= programs:
        rows = blocks(rows, 2)
    tiles = strips * blocks(height, rows)
    programs = blocks(tiles, max(1, blocks(tiles, programs)))  # the fewest that are done as early
    lanes = min(max(1, 32 * config["num_warps"] // pixels), block // chunks)
    sides = {"BLOCK_C": block, "LANES": lanes, "PIXELS": pixels, "RUN": run, "ROWS": rows}
    sides |= {"WHOLE": width % (pixels * run) == 0 and height % rows == 0, "DENSE": x.stride(2) == channels}
    return sides | ({"CHUNKS": chunks} if whole else {}), tiles, max(1, programs), config


def _chunks(channels: int) -> tuple[int, int]:
    """How many chunks hold the channels, and the first one: a power of two, or one and its half where these are less."""
    whole = triton.next_power_of_2(channels)
    return (2, whole // 2) if 4 * channels <= 3 * whole and whole > 2 else (1, whole)


def _by_tap(filters: Tensor) -> Tensor:
    """[C, 1, 3, 3] -> [9, C]: the channels of a tap side by side, as those of a pixel."""
    return filters.reshape(-1, 9).t().contiguous()


def _geometry(x: Tensor) -> tuple[int, ...]:
    """height, width and the strides of a map."""
    return (x.shape[1], x.shape[2], *x.stride()[:3])


def _triton_dtype(dtype: torch.dtype) -> Any:
    return getattr(tl, str(dtype).removeprefix("torch."))
