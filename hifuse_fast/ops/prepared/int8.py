"""Products of 8-bit integers: what is rounded, and how. The prepared ops that have them share this definition.

A value x stands for x / scale, rounded to the nearest integer, ties to even, and kept within -127 to 127. A weight has a scale
for each of its rows, the largest magnitude in it over 127. What it multiplies has one scale, which the user's images say.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

MOST = 127
MOST_DEPTH = 2**31 // MOST**2  #: of a product, whose sums are int32
MOST_CHANNELS = MOST_DEPTH // (4 * 9)  #: of the mixer by Winograd's algorithm, whose sums are four times as large
DTYPES = (torch.float32, torch.bfloat16)  #: of the maps


def check_scales(dtype: torch.dtype, depths: tuple[int, ...], **scales: Any) -> dict[str, float | None]:
    """The scales by name as floats, or all None; TypeError or ValueError for what cannot be one, and for some without others.

    Args:
        dtype: of the maps.
        depths: of the products, one of each scale.
        scales: what the user gave.
    """
    if all(value is None for value in scales.values()):
        return scales
    for (name, value), depth in zip(scales.items(), depths, strict=True):
        if value is None:
            raise ValueError(f"{name} must be given, as {' and '.join(other for other in scales if other != name)} is")
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number or None, got {type(value).__name__}")
        if not 1e-30 <= float(value) <= 1e30:  # NaN neither: a float32, and one over it
            raise ValueError(f"{name} must be from 1e-30 to 1e30, got {value}")
        if depth > MOST_DEPTH:
            raise ValueError(f"a product in int8 must be at most {MOST_DEPTH} deep, got {depth}")
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be torch.float32 or torch.bfloat16 with {' and '.join(scales)}, got {dtype}")
    return {name: float(value) for name, value in scales.items()}


def quantise_weight(weight: Tensor, input_scale: float) -> tuple[Tensor, Tensor]:
    """[N, K] -> the integers, int8 [N, K], and what a sum of their products is to be multiplied by, float32 [N].

    Values that are not finite make the scale of their row so.
    """
    wide = weight.detach().double()
    scale = wide.abs().amax(1) / MOST
    whole = scale > 0
    integers = (wide / torch.where(whole, scale, 1)[:, None]).round().nan_to_num().clamp(-MOST, MOST)
    return integers.to(torch.int8), (scale * input_scale).float()


def quantise(x: Tensor, scale: float) -> Tensor:
    """The integers of `x` [..., K], in float32; a row with a value that is not finite is all NaN."""
    x = x.float()
    lost = (x * 0).sum(-1, keepdim=True)
    return (x * (1 / scale)).clamp(-MOST, MOST).round() + lost


def product(integers: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """What `quantise` and `quantise_weight` gave, multiplied: float32, of sums that are exact."""
    exact = integers.double() @ weight.double().t()  # far below 2^53
    return exact.float() * scale


def is_scale(value: Any) -> bool:
    """Whether an option of a file is a scale, or says that there is none."""
    return value is None or (isinstance(value, float) and math.isfinite(value) and value > 0)
