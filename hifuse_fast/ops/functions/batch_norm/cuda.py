"""Batch normalisation in CUDA C++: the launchers of the kernels in csrc/cuda/batch_norm.cu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.cuda.launch import DTYPES, launch, multiprocessors, scratch
from hifuse_fast.backends.cuda.launch import why_not as why_not_cuda

ACTIVATIONS = ("none", "relu", "gelu", "sigmoid")  # as csrc/cuda/map_ops.h counts them


def why_not(*, device: torch.device, dtype: torch.dtype, **_: Any) -> str | None:
    """The reason the CUDA kernels cannot serve this call, or None."""
    return why_not_cuda(device, dtype)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all pixels of x [B, H, W, C]: [C], float32."""
    x = x.contiguous()
    mean, var = (x.new_empty(x.shape[3], dtype=torch.float32) for _ in range(2))
    sizes, numbers = _sizes(x, mean, mean, "none", False), (0.0,)
    parts = scratch("batch_norm_statistics_scratch", sizes, numbers, x)
    launch("batch_norm_statistics", sizes, numbers, (x,), (mean, var, parts))
    return mean, var


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, mean: Tensor | None, var: Tensor | None,
    *, keep: bool, training: bool, eps: float, activation: str, pool: bool,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """See `hifuse_fast.ops.batch_norm`; arguments are validated."""
    batch, height, width, channels = x.shape
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    out = x.new_empty((batch, height // 2, width // 2, channels) if pool else (*x.shape,), dtype=dtype)
    kept = list(statistics(x)) if training else []
    now = _statistics(kept, mean, var)
    return write(x, weight, bias, residual, *now, eps, activation, pool, out), kept


def write(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, mean: Tensor, var: Tensor,
    eps: float, activation: str, pool: bool, out: Tensor,
) -> Tensor:  # fmt: skip
    """`forward` into `out`, contiguous, which is returned."""
    of_residual = 0 if residual is None else DTYPES[residual.dtype]
    sizes = (*_sizes(x, weight, bias, activation, pool), of_residual, DTYPES[out.dtype])
    tensors = [None if each is None else each.contiguous() for each in (x, weight, bias, mean, var, residual)]
    launch("batch_norm_forward", sizes, (eps,), tensors, (out,))
    return out


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, residual: None, mean: Tensor | None, var: Tensor | None,
    *, kept: Sequence[Tensor], needs: Sequence[bool], training: bool, eps: float, activation: str, pool: bool,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of x in its dtype, of weight and bias in float32."""
    sizes, numbers = (*_sizes(x, weight, bias, activation, pool), DTYPES[grad.dtype], training), (eps,)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if needs[0] else None
    summed = training or needs[1] or needs[2]  # outside training only the gradients of weight and bias ask for sums
    dweight, dbias = (x.new_empty(weight.shape, dtype=torch.float32) if summed else None for _ in range(2))
    parts = scratch("batch_norm_backward_scratch", sizes, numbers, x)
    reads = [each.contiguous() for each in (grad, x, weight, bias, *_statistics(kept, mean, var))]
    launch("batch_norm_backward", sizes, numbers, reads, (dx, dweight, dbias, parts))
    return [dx, dweight, dbias, None, None, None]


def _statistics(kept: Sequence[Tensor], *running: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance: those of the batch, which the forward keeps in training, or the running ones."""
    mean, var = kept or [each for each in running if each is not None]
    return mean, var


def _sizes(x: Tensor, weight: Tensor, bias: Tensor, activation: str, pool: bool) -> tuple[int, ...]:
    dtypes = [DTYPES[each.dtype] for each in (x, weight, bias)]
    return (*x.shape, ACTIVATIONS.index(activation), pool, *dtypes, multiprocessors(x.device))
