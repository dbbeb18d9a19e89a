"""Largest value and mean in CUDA C++: the launchers of the kernels in csrc/cuda/max_mean.cu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.cuda.launch import DTYPES, launch, scratch
from hifuse_fast.backends.cuda.launch import why_not as why_not_cuda


def why_not(*, device: torch.device, dtype: torch.dtype, **_: Any) -> str | None:
    """The reason the CUDA kernels cannot serve this call, or None."""
    return why_not_cuda(device, dtype)


def forward(x: Tensor, *, keep: bool, over: str) -> tuple[Tensor, list[Tensor]]:
    """See `hifuse_fast.ops.max_mean`; also where the largest values are: the channel [B, H, W] or the pixel [B, C], int32."""
    x = x.contiguous()
    batch, height, width, channels = x.shape
    if over == "channels":
        out, index = x.new_empty((batch, height, width, 2)), x.new_empty((batch, height, width), dtype=torch.int32)
    else:
        out, index = x.new_empty((batch, 2, 1, channels)), x.new_empty((batch, channels), dtype=torch.int32)
    sizes = _sizes(x, over, x.dtype)
    launch("max_mean_forward", sizes, (), (x,), (out, index, scratch("max_mean_scratch", sizes, (), x)))
    return out, [index]


def backward(
    grad: Tensor, x: Tensor, *, kept: Sequence[Tensor], needs: Sequence[bool], over: str
) -> list[Tensor]:  # fmt: skip
    """The gradient of x, in the dtype of `grad`."""
    (index,), dx = kept, grad.new_empty(x.shape)
    launch("max_mean_backward", _sizes(x, over, grad.dtype), (), (grad.contiguous(), index), (dx,))
    return [dx]


def _sizes(x: Tensor, over: str, dtype: torch.dtype) -> tuple[int, ...]:
    batch, height, width, channels = x.shape
    return (batch, height * width, channels, over == "channels", DTYPES[dtype])
