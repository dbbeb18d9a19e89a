"""Maps padded to whole windows, patches and strides, without a question that compiled code would answer for one size alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def next_multiple(length: int, multiple: int) -> int:
    """The smallest multiple that is not below `length`.

    torch.compile simplifies what is computed of this product, and then knows that it divides by `multiple` without asking.
    """
    return multiple * max(1, (length + multiple - 1) // multiple)


def is_zero(length: int) -> bool:
    """Whether `length` is 0; while compiling, whether it is 0 at every size that the compiled code serves."""
    if not torch.compiler.is_compiling():
        return length == 0
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(length == 0)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zero-pad [B, H, W, C] at the right and the bottom, so that H and W are multiples of `multiple`."""
    bottom, right = (next_multiple(n, multiple) - n for n in x.shape[1:3])
    return x if is_zero(bottom) and is_zero(right) else F.pad(x, (0, 0, 0, right, 0, bottom))


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """The first rows and columns of a contiguous map [B, H, W, C], contiguous."""
    if not torch.compiler.is_compiling():
        return x[:, :height, :width].contiguous()
    if is_zero(x.size(1) - height) and is_zero(x.size(2) - width):
        return x
    # Not a slice: whether that is contiguous depends on whether it is the whole map, and a graph would be bound to the answer.
    for axis, length in ((1, height), (2, width)):
        x = x.index_select(axis, torch.arange(length, device=x.device))
    return x
