"""PyTorch's convolution and its gradients on a CPU, of maps [B, H, W, C], contiguous."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.ops.functions.layout import convolve, is_channels_last


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, keep: bool, padding: int, groups: int
) -> tuple[Tensor, list[Tensor]]:
    """See the reference; nothing is kept."""
    conv = partial(F.conv2d, weight=weight, bias=bias, padding=padding, groups=groups)
    return convolve(conv, x, weight).contiguous(), []


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None,
    *, kept: Sequence[Tensor], needs: Sequence[bool], padding: int, groups: int,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of x, weight and bias."""
    layout = torch.channels_last if is_channels_last(weight) else torch.contiguous_format  # as in the forward
    maps = [each.permute(0, 3, 1, 2).contiguous(memory_format=layout) for each in (grad, x)]
    sizes = None if bias is None else [len(weight)]
    dx, *others = torch.ops.aten.convolution_backward(
        *maps, weight, sizes, [1, 1], [padding, padding], [1, 1], False, [0, 0], groups, list(needs)
    )
    return [None if dx is None else dx.permute(0, 2, 3, 1).contiguous(), *others]
