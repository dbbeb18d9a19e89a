"""Depthwise convolution and layer normalisation in plain PyTorch: the definition."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.ops.functions.convolution import convolution, is_bound


def depthwise_norm(x: Tensor, filters: Tensor, filter_bias: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """See `hifuse_fast.ops.depthwise_norm`; arguments are validated."""
    filters, filter_bias = filters.to(x.dtype), filter_bias.to(x.dtype)
    if is_bound(x):
        x = convolution(x, filters, filter_bias, padding=1, groups=len(filters))
    else:
        x = F.conv2d(x.permute(0, 3, 1, 2), filters, filter_bias, padding=1, groups=len(filters)).permute(0, 2, 3, 1)
    return F.layer_norm(x, (x.size(-1),), weight, bias, eps)
