"""Both ends of the frozen network: the launchers of csrc/cuda/ends.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from hifuse_fast.backends.cuda.launch import DTYPES, launch
from hifuse_fast.backends.tape import kept


def stem_patches(images: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """[B, C, H, W] of any strides -> [B, height, width, 16 C] of `dtype`, numbers in the order (channel, row, column).

    Zeros stand below and to the right of the images, which are float32 or of `dtype`.
    """
    batch, in_chans = images.shape[:2]
    rows = images.new_empty((batch, height, width, 16 * in_chans), dtype=dtype)
    launch(
        "stem_patches", (DTYPES[dtype], DTYPES[images.dtype], batch, height, width, *images.shape[1:]), (), (images,), (rows,)
    )
    return rows


def mean(x: Tensor) -> Tensor:
    """The mean over the pixels, [B, H, W, C] -> [B, 1, 1, C], of sums in float64."""
    batch, height, width, channels = x.shape
    x, out = x.contiguous(), x.new_empty((batch, 1, 1, channels))
    if not kept("mean", x=x, out=out):
        launch("mean", (DTYPES[x.dtype], batch, height * width, channels), (), (x,), (out,))
    return out
