"""The mixer in plain PyTorch: the definition every kernel is tested against."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor


def convolve(conv: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> Tensor:
    """`conv`, a convolution of [B, C, H, W] by `weight`, of a map [B, H, W, C], computed in the layout of its weight.

    A 1x1 or depthwise weight fits channels last as it is. A dense larger one is channels first unless the user says
    `model.to(memory_format=torch.channels_last)`, which a GPU wants. On a CPU copying the map is less than what PyTorch does
    otherwise, which is to copy the weight at every call, and its gradient too; and oneDNN is 3 times as exact channels first.
    """
    x = x.permute(0, 3, 1, 2)
    if weight.is_contiguous(memory_format=torch.channels_last):
        return conv(x).permute(0, 2, 3, 1)
    return conv(x.contiguous()).permute(0, 2, 3, 1).contiguous()


def mixer(z: Tensor, weight: Tensor) -> Tensor:
    """See `hifuse_fast.ops.mixer`; arguments are validated."""
    channels, depth = weight.shape[:2]
    conv = partial(F.conv2d, weight=weight, padding=1, groups=channels // depth)
    return F.gelu(convolve(conv, z, weight)) + z
