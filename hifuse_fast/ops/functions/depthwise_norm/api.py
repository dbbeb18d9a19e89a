"""The contract of the depthwise convolution with layer normalisation: docstring, validation, choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from hifuse_fast.backends.select import autocast_dtype, select
from hifuse_fast.checks import check_eps, check_map, check_one_dtype, check_parameter
from hifuse_fast.ops.functions.depthwise_norm import reference
from hifuse_fast.ops.functions.fused import Fused, Product


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
        backend: "auto", "reference", "native", "triton" or "cuda".

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
    width, channels = x.size(2), x.size(3)
    check_parameter("filters", filters, [channels, 1, 3, 3], x)
    check_parameter("filter_bias", filter_bias, [channels], x)
    check_parameter("weight", weight, [channels], x)
    check_parameter("bias", bias, [channels], x)
    kernels = select("depthwise_norm", backend, key=(channels,), device=x.device, dtype=x.dtype, channels=channels, width=width)
    if kernels is None:
        check_one_dtype(weight=weight, bias=bias)
        return reference.depthwise_norm(x, filters, filter_bias, weight, bias, eps=eps)
    autocast = autocast_dtype(x)
    taken = autocast or x.dtype
    dtype = torch.float32 if autocast and x.is_cuda else taken
    return _FUSED(kernels, (x, filters, filter_bias, weight, bias), {"eps": eps, "taken": taken, "dtype": dtype})[0]


def _definition(*tensors: Tensor, eps: float, taken: torch.dtype, dtype: torch.dtype) -> Tensor:
    return reference.depthwise_norm(*tensors, eps=eps).to(dtype)


def _products(x: Tensor, *_: Tensor, **__: object) -> list[Product]:
    return [Product(2 * 9 * x.numel(), (0,), (1,), groups=x.shape[3])]


_FUSED = Fused(
    "depthwise_norm",
    "Tensor x, Tensor filters, Tensor filter_bias, Tensor weight, Tensor bias",
    "float eps, ScalarType taken, ScalarType dtype",
    _definition,
    products=_products,
)
