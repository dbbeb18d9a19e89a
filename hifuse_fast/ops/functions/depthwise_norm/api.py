"""The contract of the depthwise convolution with layer normalisation: docstring, validation, choice of backend, autograd."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.select import autocast_dtype, select
from hifuse_fast.checks import check_eps, check_map, check_parameter
from hifuse_fast.ops.functions.depthwise_norm import reference


def depthwise_norm(
    x: Tensor,
    filters: Tensor,
    filter_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-6,
    backend: str = "auto",
) -> Tensor:
    r"""Depthwise 3x3 convolution of a map, then layer normalisation over the channels of each pixel.

    .. math:: y = \mathrm{LN}(\mathrm{dwconv}_{3 \times 3}(x) + filter\_bias) \cdot weight + bias

    with stride 1, the map zero-padded by 1, and :math:`\mathrm{LN}(c) = (c - \mathrm{mean}(c)) / \sqrt{\mathrm{var}(c) + eps}`.

    Args:
        x: [B, H, W, C], any strides; floating.
        filters: [C, 1, 3, 3], the weight of `nn.Conv2d(C, C, 3, padding=1, groups=C)`.
        filter_bias, weight, bias: [C]. They and `filters` are of the dtype of `x`, or float32.
        eps: added to the variance (biased, as everywhere in layer normalisation).
        backend: "auto", "reference", "native" or "triton".

    Returns:
        [B, H, W, C] in the dtype of `x`. Under autocast, as in PyTorch, the convolution takes `x` and `filters` in autocast's
        dtype; the result is float32 on CUDA, and of autocast's dtype on a CPU.

    Raises:
        TypeError, ValueError: an argument that does not fit; the message names it, what it was and what was expected.
        BackendError: the backend asked for by name cannot serve the call.

    Source: Huo et al. 2024 (HiFuse), the local block up to its linear; Liu et al. 2022 (ConvNeXt).
    """
    eps = check_eps("eps", eps)
    check_map("x", x)
    width, channels = x.shape[2:]
    check_parameter("filters", filters, [channels, 1, 3, 3], x)
    check_parameter("filter_bias", filter_bias, [channels], x)
    check_parameter("weight", weight, [channels], x)
    check_parameter("bias", bias, [channels], x)
    kernels = select("depthwise_norm", backend, key=(channels,), device=x.device, dtype=x.dtype, channels=channels, width=width)
    if kernels is None:
        return reference.depthwise_norm(x, filters, filter_bias, weight, bias, eps=eps)
    autocast = autocast_dtype(x.device)
    taken = autocast or x.dtype
    dtype = torch.float32 if autocast and x.is_cuda else taken
    tensors = (x, filters, filter_bias, weight, bias)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        out: Tensor = _DepthwiseNorm.apply(*tensors, kernels, eps, taken, dtype)
        return out
    forwarded: Tensor = kernels.forward(*tensors, eps, taken, dtype)
    return forwarded


class _DepthwiseNorm(torch.autograd.Function):
    """Saves the inputs only. The backward convolves again, which costs less than reading a map that the forward kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        filters: Tensor,
        filter_bias: Tensor,
        weight: Tensor,
        bias: Tensor,
        kernels: ModuleType,
        eps: float,
        taken: torch.dtype,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(x, filters, filter_bias, weight, bias)
        ctx.kernels, ctx.eps, ctx.taken = kernels, eps, taken
        out: Tensor = kernels.forward(x, filters, filter_bias, weight, bias, eps, taken, dtype)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters, bias = ctx.saved_tensors
        dx, dfilters, sums = ctx.kernels.backward(grad, x, *parameters, ctx.eps, ctx.taken)
        grads = (dfilters, *sums.unbind())
        typed = (grad.to(tensor.dtype) for grad, tensor in zip(grads, (*parameters, bias), strict=True))
        return dx, *typed, None, None, None, None
