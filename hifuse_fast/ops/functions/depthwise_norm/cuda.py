"""Depthwise 3x3 convolution with layer normalisation in CUDA C++: the launchers of csrc/cuda/depthwise_norm.cu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.cuda.launch import DTYPES, launch, multiprocessors, scratch, strided
from hifuse_fast.backends.cuda.launch import why_not as why_not_cuda

MAX_CHANNELS = 3072  # a pixel has to fit into the registers of a block of threads
CHUNK = 8  # channels that a thread takes at a time


def why_not(*, device: torch.device, dtype: torch.dtype, channels: int = 1, **_: Any) -> str | None:
    """The reason the CUDA kernels cannot serve this call, or None."""
    if channels > MAX_CHANNELS:
        return f"its maps have at most {MAX_CHANNELS} channels, got {channels}"
    return why_not_cuda(device, dtype)


def forward(
    x: Tensor, filters: Tensor, filter_bias: Tensor, weight: Tensor, bias: Tensor,
    *, keep: bool, eps: float, taken: torch.dtype, dtype: torch.dtype,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """See `hifuse_fast.ops.depthwise_norm`; arguments are validated."""
    return write(x, by_tap(filters, taken), filter_bias, weight, bias, eps, taken, dtype), []


def write(
    x: Tensor, taps: Tensor, filter_bias: Tensor, weight: Tensor, bias: Tensor, eps: float, taken: torch.dtype,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The result alone, of filters as `by_tap` gives them; x is taken in one dtype, the result is of another."""
    x = strided(x)
    out = x.new_empty(x.shape, dtype=dtype)
    reads = (x, taps, *(each.contiguous() for each in (filter_bias, weight, bias)))
    launch("depthwise_norm_forward", _sizes(x, taken, (filter_bias, weight, bias), dtype), (eps,), reads, (out,))
    return out


def backward(
    grad: Tensor, x: Tensor, filters: Tensor, filter_bias: Tensor, weight: Tensor, bias: Tensor,
    *, kept: Sequence[Tensor], needs: Sequence[bool], eps: float, taken: torch.dtype, dtype: torch.dtype,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of x in its dtype, and in float32 of the filters, of filter_bias, weight and bias."""
    x, grad, taps = strided(x), grad.contiguous(), by_tap(filters, taken)
    need_convolution, need_parameters = any(needs[:2]), any(needs[2:])
    sizes, numbers = _sizes(x, taken, (filter_bias, weight, bias), grad.dtype), (eps,)
    dc = x.new_empty(x.shape, dtype=taken) if need_convolution else None
    parameters = [x.new_empty(bias.shape, dtype=torch.float32) if need_parameters else None for _ in range(3)]
    parts = scratch("depthwise_norm_backward_scratch", sizes, numbers, x)
    reads = (grad, x, taps, filter_bias.contiguous(), weight.contiguous())
    launch("depthwise_norm_backward", sizes, numbers, reads, (dc, *parameters, parts))
    return [*([None] * 2 if dc is None else backward_convolution(dc, x, filters, needs[:2])), *parameters]


def backward_convolution(dc: Tensor, x: Tensor, filters: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """Of the gradient of a depthwise convolution those of x, in its dtype, and of the filters, in float32, as needed.

    x, its channels side by side, and filters are taken in the dtype of `dc`, which is contiguous.
    """
    need_map, need_filters = needs
    sizes, numbers = _sizes(x, dc.dtype, (dc, dc, dc), dc.dtype), (0.0,)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need_map else None
    dtaps = x.new_empty((9, x.shape[3]), dtype=torch.float32) if need_filters else None
    parts = scratch("depthwise_convolution_backward_scratch", sizes, numbers, x)
    reads = (dc, x, by_tap(filters, dc.dtype))
    launch("depthwise_convolution_backward", sizes, numbers, reads, (dx, dtaps, parts))
    return [dx, None if dtaps is None else dtaps.t().reshape(filters.shape)]


def by_tap(filters: Tensor, taken: torch.dtype) -> Tensor:
    """[C, 1, 3, 3] -> [9, C, filled up to whole chunks], float32: numbers of `taken`, those of a tap side by side."""
    channels = filters.shape[0]
    taps = filters.new_zeros((9, filled_up(channels)), dtype=torch.float32)
    taps[:, :channels] = filters.to(taken).reshape(-1, 9).t()
    return taps


def filled_up(channels: int) -> int:
    """So many channels and what is missing to whole chunks."""
    return (channels + CHUNK - 1) // CHUNK * CHUNK


def _sizes(x: Tensor, taken: torch.dtype, vectors: Sequence[Tensor], dtype: torch.dtype) -> tuple[int, ...]:
    dtypes = [DTYPES[each] for each in (x.dtype, taken, *(vector.dtype for vector in vectors), dtype)]
    return (*x.shape, *dtypes, multiprocessors(x.device))
