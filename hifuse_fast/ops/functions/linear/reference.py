"""The linear over maps in plain PyTorch: the definition every kernel is tested against."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.ops.functions.layer_norm.reference import patches


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    residual: Tensor | None,
    *,
    eps: float,
    rows: str,
    activation: str,
) -> Tensor:
    """See `hifuse_fast.ops.linear`; arguments are validated."""
    if rows == "patches":
        x = patches(x)
    if norm_weight is not None:
        x = F.layer_norm(x, (x.size(-1),), norm_weight, norm_bias, eps)
    y = F.linear(x, weight, bias)
    if activation == "gelu":
        y = F.gelu(y)
    return y if residual is None else residual + y
