"""Which tensors can be weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def why_no_weight(tensor: Tensor) -> str | None:
    """Why a tensor cannot be a weight or a buffer of a network, for a sentence that begins with its name; None where it can."""
    if tensor.is_quantized:
        return f"is quantised ({tensor.dtype}): dequantise it first"
    if tensor.is_complex():
        return f"is complex ({tensor.dtype}): weights are real"
    if tensor.layout != torch.strided:
        return f"is not dense ({tensor.layout}): call to_dense() first"
    if tensor.is_meta:
        return "is on the meta device, and so has no values"
    if tensor.is_floating_point() and tensor.dtype not in _ARITHMETIC and not is_float8(tensor):
        return f"is {tensor.dtype}, which holds several numbers in one: convert it first"
    return None if is_finite(tensor) else "has values that are not finite"


def is_float8(tensor: Tensor) -> bool:
    """Whether it is of a floating-point type of 8 bits, which nothing computes in."""
    return str(tensor.dtype).startswith("torch.float8")


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is infinite or NaN; also of integers."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    wide = tensor.detach().float() if is_float8(tensor) else tensor.detach()
    return all(math.isfinite(end.item()) for end in wide.aminmax())  # NaN where a value is; 15 times as fast as isfinite


_ARITHMETIC = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
