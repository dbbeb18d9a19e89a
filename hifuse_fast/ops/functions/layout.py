"""In which layout PyTorch convolves a map."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def convolve(conv: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> Tensor:
    """`conv`, a convolution of [B, C, H, W] by `weight`, of a map [B, H, W, C], computed in the layout of its weight.

    A 1x1 or depthwise weight fits channels last as it is. A dense larger one is channels first unless the user says
    `model.to(memory_format=torch.channels_last)`, which a GPU wants. On a CPU copying the map is less than what PyTorch does
    otherwise, which is to copy the weight at every call, and its gradient too; and oneDNN is 3 times as exact channels first.
    """
    x = x.permute(0, 3, 1, 2)
    if is_channels_last(weight):
        return conv(x).permute(0, 2, 3, 1)
    return conv(x.contiguous()).permute(0, 2, 3, 1).contiguous()


def is_channels_last(weight: Tensor) -> bool:
    """By its strides, because `is_contiguous(memory_format=...)` cannot be asked under torch.func.vmap."""
    _, depth, height, width = weight.shape
    wanted = (depth * height * width, 1, depth * width, depth)
    return all(size == 1 or stride == want for size, stride, want in zip(weight.shape, weight.stride(), wanted, strict=True))
