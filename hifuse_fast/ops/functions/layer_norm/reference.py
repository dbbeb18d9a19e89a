"""Layer normalisation in plain PyTorch: the definition."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.ops.functions.padding import pad_to_multiple


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, rows: str) -> Tensor:
    """See `hifuse_fast.ops.layer_norm`; arguments are validated."""
    if rows == "patches":
        x = patches(x)
    return F.layer_norm(x, (x.size(-1),), weight, bias, eps)


def patches(x: Tensor) -> Tensor:
    """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), 4C], pixels in the order (row, column) = (0, 0) (1, 0) (0, 1) (1, 1)."""
    batch, height, width, channels = x.shape
    x = pad_to_multiple(x, 2).reshape(batch, (height + 1) // 2, 2, (width + 1) // 2, 2, channels)
    # No `flatten`: PyTorch's older vmap, of autograd.functional, cannot take it.
    return x.permute(0, 1, 3, 4, 2, 5).reshape(batch, (height + 1) // 2, (width + 1) // 2, 4 * channels)
