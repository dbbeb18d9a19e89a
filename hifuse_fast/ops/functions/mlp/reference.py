"""The MLP in plain PyTorch: the definition every kernel is tested against."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.ops.functions.convolution import convolution, is_bound


def mlp(u: Tensor, expand_weight: Tensor, project_weight: Tensor) -> Tensor:
    """See `hifuse_fast.ops.mlp`; arguments are validated.

    Two 1x1 convolutions, as in the official code: on a CPU they are the faster ones too.
    """
    if is_bound(u):
        expand, project = (
            partial(convolution, weight=weight[:, :, None, None], bias=None, padding=0, groups=1)
            for weight in (expand_weight, project_weight)
        )
        return project(F.gelu(expand(u)))
    hidden = F.gelu(F.conv2d(u.permute(0, 3, 1, 2), expand_weight[:, :, None, None]))
    return F.conv2d(hidden, project_weight[:, :, None, None]).permute(0, 2, 3, 1)
