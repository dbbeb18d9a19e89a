"""Batch normalisation, activation, pooling and residual in plain PyTorch: the definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    pool: bool,
    residual: Tensor | None,
) -> Tensor:
    """See `hifuse_fast.ops.batch_norm`; arguments are validated."""
    x = x.permute(0, 3, 1, 2)
    # PyTorch's channels-last CPU kernel adds up a channel in one float32, which at 8 images of 56 x 56 already costs a relative
    # error of 4e-5; its channels-first kernel keeps 3e-7, and two copies are little in a training step.
    # Outside training its backward gives wrong gradients where input and gradient differ in strides, as on maps one pixel wide.
    # torch.jit.trace compares two graphs, one of them made without gradients: in both it is the same.
    copied = x.is_cpu and (training or torch.is_grad_enabled() or torch.jit.is_tracing())  # type: ignore[attr-defined]
    x = F.batch_norm(x.contiguous() if copied else x, running_mean, running_var, weight, bias, training, momentum, eps)
    x = x.permute(0, 2, 3, 1)
    return finish(x.contiguous() if copied else x, activation, pool, residual)


def finish(x: Tensor, activation: str, pool: bool, residual: Tensor | None) -> Tensor:
    """residual + pool(act(x)); the activation is none, relu, gelu (the exact one) or sigmoid."""
    if activation == "relu":
        x = F.relu(x)
    elif activation == "gelu":
        x = F.gelu(x)
    elif activation == "sigmoid":
        x = x.sigmoid()
    if pool:
        x = F.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    return x if residual is None else residual + x
