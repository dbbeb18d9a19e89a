"""Layer normalisation in CUDA C++: the launchers of the kernels in csrc/cuda/layer_norm.cu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.cuda.launch import DTYPES, launch, multiprocessors, scratch, strided
from hifuse_fast.backends.cuda.launch import why_not as why_not_cuda

MAX_WIDTH = 3072  # a row has to fit into the registers of a block of threads


def why_not(*, device: torch.device, dtype: torch.dtype, width: int = 1, **_: Any) -> str | None:
    """The reason the CUDA kernels cannot serve this call, or None."""
    if width > MAX_WIDTH:
        return f"its rows have at most {MAX_WIDTH} channels, got {width}"
    return why_not_cuda(device, dtype)


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
        height, width, channels = (height + 1) // 2, (width + 1) // 2, 4 * channels
    out = x.new_empty((batch, height, width, channels), dtype=dtype) if out is None else out
    sizes = _sizes(x, weight, bias, rows, dtype)
    launch("layer_norm_forward", sizes, (eps,), (x, weight.contiguous(), bias.contiguous()), (out,))
    return out


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor,
    *, kept: Sequence[Tensor], needs: Sequence[bool], eps: float, rows: str, dtype: torch.dtype,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of x in its dtype, and of weight and bias in float32: one reading of x gives all."""
    x, grad, (need_map, *need_parameters) = strided(x), grad.contiguous(), needs
    sizes, numbers = _sizes(x, weight, bias, rows, grad.dtype), (eps,)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need_map else None
    parameters = [x.new_empty(weight.shape, dtype=torch.float32) if any(need_parameters) else None for _ in range(2)]
    parts = scratch("layer_norm_backward_scratch", sizes, numbers, x) if any(need_parameters) else None
    launch("layer_norm_backward", sizes, numbers, (grad, x, weight.contiguous()), (dx, *parameters, parts))
    return [dx, *parameters]


def _sizes(x: Tensor, weight: Tensor, bias: Tensor, rows: str, dtype: torch.dtype) -> tuple[int, ...]:
    dtypes = [DTYPES[each.dtype] for each in (x, weight, bias)]
    return (*dtypes, *x.shape, rows == "patches", DTYPES[dtype], multiprocessors(x.device))
