"""The contract of batch normalisation: docstring, validation, choice of backend, running statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.select import select
from hifuse_fast.checks import check_choice, check_eps, check_flag, check_map, check_one_dtype, check_parameter, check_rate
from hifuse_fast.ops.functions.batch_norm import reference
from hifuse_fast.ops.functions.fused import Fused

ACTIVATIONS = ("none", "relu", "gelu", "sigmoid")


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
    pool: bool = False,
    residual: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""Batch normalisation over the channels of a map, and what follows it.

    .. math:: y = residual + \mathrm{pool}(\mathrm{act}(\frac{x - mean}{\sqrt{var + eps}} \cdot weight + bias))

    In training, mean and (biased) var are those of all pixels of the batch. The running statistics are updated in place, as
    PyTorch does: running <- (1 - momentum) running + momentum now, with the unbiased variance. Outside training, mean and var
    are the running statistics.

    Args:
        x: [B, H, W, C], floating.
        weight, bias: [C], of the dtype of `x`, or float32.
        running_mean, running_var: [C]; may be None in training, where no statistics are kept.
        training: whether to normalise by the statistics of the batch.
        momentum: share of the new statistics in the running ones, 0 to 1.
        eps: added to the variance.
        activation: "none", "relu", "gelu" (the exact one) or "sigmoid".
        pool: average the 2x2 patches; H and W must be even.
        residual: [B, H', W', C] or None, with H' = H / 2 and W' = W / 2 if `pool`.
        backend: "auto", "reference", "native", "triton" or "cuda".

    Returns:
        [B, H', W', C], the dtype of `x`, promoted by that of `residual`.

    Raises:
        TypeError, ValueError: an argument that does not fit; the message names it, what it was and what was expected.
        BackendError: the backend asked for by name cannot serve the call.

    Source: Ioffe and Szegedy 2015; the official HiFuse `Conv` and `HFF_block`.
    """
    check_choice("activation", activation, ACTIVATIONS)
    _check(x, weight, bias, running_mean, running_var, check_flag("training", training), check_flag("pool", pool), residual)
    eps = check_eps("eps", eps)
    momentum = momentum if momentum == 1 else check_rate("momentum", momentum)
    after = ("" if activation == "none" else activation, "pool" if pool else "", "" if residual is None else "residual")
    key = (x.size(3), "training" if training else "", *after)
    kernels = select("batch_norm", backend, key=key, device=x.device, dtype=x.dtype)
    options: dict[str, Any] = {"eps": eps, "activation": activation, "pool": pool}
    if kernels is None:
        check_one_dtype(weight=weight, bias=bias, running_mean=running_mean, running_var=running_var)
        return reference.batch_norm(
            x, weight, bias, running_mean, running_var, training=training, momentum=momentum, residual=residual, **options
        )
    given = [None, None] if training else [r.float() for r in (running_mean, running_var) if r is not None]
    out, statistics = _FUSED(kernels, (x, weight, bias, residual, *given), {"training": training, **options})
    if training:
        mean, var = statistics
        pixels = x.numel() // x.size(3)
        with torch.no_grad():
            _update(running_mean, mean, momentum)
            _update(running_var, var * (pixels / max(1, pixels - 1)), momentum)
    return out


def _definition(
    x: Tensor, weight: Tensor, bias: Tensor, residual: None, mean: Tensor | None, var: Tensor | None, **options: Any
) -> Tensor:
    return reference.batch_norm(x, weight, bias, mean, var, momentum=0.0, residual=residual, **options)


_FUSED = Fused(
    "batch_norm",
    "Tensor x, Tensor weight, Tensor bias, Tensor? residual, Tensor? mean, Tensor? var",
    "bool training, float eps, str activation, bool pool",
    _definition,
    added=3,
)


def _update(running: Tensor | None, now: Tensor, momentum: float) -> None:
    if running is not None:
        running.lerp_(now.to(running.dtype), momentum)


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    pool: bool,
    residual: Tensor | None,
) -> None:
    check_map("x", x)
    channels = x.size(3)
    check_parameter("weight", weight, [channels], x)
    check_parameter("bias", bias, [channels], x)
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running is not None:
            check_parameter(name, running, [channels], x)
        elif not training:
            raise ValueError(f"{name} must be a tensor unless training, got None")
    if training and x.numel() == channels:
        raise ValueError(f"x must have more than one pixel a channel in training, got {list(x.shape)}")
    if pool and (x.size(1) % 2 or x.size(2) % 2):
        raise ValueError(f"x must have even H and W with pool, got {list(x.shape)}")
    if residual is not None:
        check_map("residual", residual)
        batch, height, width, _ = x.shape
        expected = [batch, height // 2, width // 2, channels] if pool else [batch, height, width, channels]
        if list(residual.shape) != expected:
            raise ValueError(f"residual must be {expected}, got {list(residual.shape)}")
        if residual.device != x.device:
            raise ValueError(f"residual must be on the device of x, {x.device}, got {residual.device}")
