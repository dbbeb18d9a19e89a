"""The convolution in plain PyTorch: the definition."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.ops.functions.layout import convolve


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: int, groups: int) -> Tensor:
    """The convolution of a map [B, H, W, C] of stride 1, contiguous."""
    return convolve(partial(F.conv2d, weight=weight, bias=bias, padding=padding, groups=groups), x, weight).contiguous()
