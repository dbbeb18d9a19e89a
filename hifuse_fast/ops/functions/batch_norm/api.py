"""The contract of batch normalisation: docstring, validation, choice of backend, running statistics, autograd."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.select import select
from hifuse_fast.checks import check_choice, check_eps, check_flag, check_map, check_parameter, check_rate
from hifuse_fast.ops.functions.batch_norm import reference

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
        backend: "auto", "reference", "native" or "triton".

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
    key = (x.shape[3], "training" if training else "", *after)
    kernels = select("batch_norm", backend, key=key, device=x.device, dtype=x.dtype)
    options: dict[str, Any] = {"eps": eps, "activation": activation, "pool": pool}
    if kernels is None:
        return reference.batch_norm(
            x, weight, bias, running_mean, running_var, training=training, momentum=momentum, residual=residual, **options
        )
    if training:
        with torch.no_grad():
            mean, var = kernels.statistics(x)
            _update(running_mean, mean, momentum)
            pixels = x.numel() // x.shape[3]
            _update(running_var, var * (pixels / max(1, pixels - 1)), momentum)
    else:
        mean, var = (running.float() for running in (running_mean, running_var) if running is not None)
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    wanted = [t for t in (x, weight, bias, residual) if t is not None and t.requires_grad]
    if torch.is_grad_enabled() and wanted:
        out: Tensor = _BatchNorm.apply(x, weight, bias, residual, mean, var, kernels, training, options, dtype)
        return out
    forwarded: Tensor = kernels.forward(x, weight, bias, residual, mean, var, eps, activation, pool, dtype)
    return forwarded


class _BatchNorm(torch.autograd.Function):
    """Saves the input and the statistics. The backward reads x anyway, and computes from it what lies between."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        mean: Tensor,
        var: Tensor,
        kernels: ModuleType,
        training: bool,
        options: dict[str, Any],
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, mean, var)
        ctx.kernels, ctx.training, ctx.options = kernels, training, options
        ctx.residual_dtype = None if residual is None else residual.dtype
        out: Tensor = kernels.forward(x, weight, bias, residual, mean, var, *options.values(), dtype)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, var = ctx.saved_tensors
        dx, dweight, dbias = ctx.kernels.backward(grad, x, weight, bias, mean, var, ctx.training, *ctx.options.values())
        dresidual = None if ctx.residual_dtype is None else grad.to(ctx.residual_dtype)
        return (dx, dweight.to(weight.dtype), dbias.to(bias.dtype), dresidual, *[None] * 6)


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
    batch, height, width, channels = x.shape
    check_parameter("weight", weight, [channels], x)
    check_parameter("bias", bias, [channels], x)
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running is not None:
            check_parameter(name, running, [channels], x)
        elif not training:
            raise ValueError(f"{name} must be a tensor unless training, got None")
    if training and batch * height * width == 1:
        raise ValueError(f"x must have more than one pixel a channel in training, got {list(x.shape)}")
    if pool and (height % 2 or width % 2):
        raise ValueError(f"x must have even H and W with pool, got {list(x.shape)}")
    if residual is not None:
        check_map("residual", residual)
        expected = [batch, height // 2, width // 2, channels] if pool else list(x.shape)
        if list(residual.shape) != expected:
            raise ValueError(f"residual must be {expected}, got {list(residual.shape)}")
        if residual.device != x.device:
            raise ValueError(f"residual must be on the device of x, {x.device}, got {residual.device}")
