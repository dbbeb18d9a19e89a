"""The mixer in plain PyTorch: the definition every kernel is tested against."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.ops.functions.convolution import convolution, is_bound
from hifuse_fast.ops.functions.layout import convolve


def mixer(z: Tensor, weight: Tensor) -> Tensor:
    """See `hifuse_fast.ops.mixer`; arguments are validated."""
    channels, depth = weight.shape[:2]
    if is_bound(z):
        return F.gelu(convolution(z, weight, None, padding=1, groups=channels // depth)) + z
    conv = partial(F.conv2d, weight=weight, padding=1, groups=channels // depth)
    return F.gelu(convolve(conv, z, weight)) + z
