"""GELU after a vendor's product, and its derivative: every value of 16 bits, and the ends of the line."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.testing import TINY
from tests.support.kernels import DEVICE, kernels

pytestmark = [pytest.mark.gpu, *kernels("linear", "triton")[0].marks]
WIDE = 12.0  # beyond it GELU is 0 or the value itself


def every_value(dtype: torch.dtype) -> Tensor:
    """Every number of a 16-bit dtype between -WIDE and WIDE."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    return bits[bits.abs() <= WIDE].to(DEVICE)


def finished(z: Tensor) -> Tensor:
    from hifuse_fast.backends.triton import pointwise

    out = torch.empty_like(z)
    pointwise.finish(z, None, out, gelu=True)
    return out


def derivative(z: Tensor) -> Tensor:
    from hifuse_fast.backends.triton import pointwise

    rows = F.pad(z, (0, -len(z) % 256)).view(-1, 256)
    dz = torch.empty_like(rows)
    pointwise.gelu_backward(torch.ones_like(rows), rows, dz, need_bias=False)
    return dz.flatten()[: len(z)]


def check(actual: Tensor, exact: Tensor, tail: Tensor) -> None:
    """One rounding and a twentieth of another; in the tail, where what is left of GELU is small, 2e-8 absolute."""
    rounding = torch.finfo(actual.dtype).eps / 2
    smallest = max(TINY, torch.finfo(actual.dtype).tiny * rounding)  # half a step of float16 where it is subnormal
    error = (actual.double() - exact).abs()
    allowed = 1.05 * rounding * exact.abs() + torch.where(tail, 2e-8, 0) + smallest
    worst = (error - allowed).argmax()
    assert (error <= allowed).all(), f"{exact[worst].item()}: {actual[worst].item()}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gelu_of_every_value(dtype: torch.dtype) -> None:
    z = every_value(dtype)
    exact = z.double() * torch.special.ndtr(z.double())
    check(finished(z), exact, z < -4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_its_derivative_at_every_value(dtype: torch.dtype) -> None:
    """Near its zero at -0.75 it is a difference of two numbers of 0.23."""
    z = every_value(dtype)
    wide = z.double()
    exact = torch.special.ndtr(wide) + wide * torch.exp(-0.5 * wide**2) / math.sqrt(2 * math.pi)
    actual = derivative(z).double()
    allowed = 1.05 * torch.finfo(dtype).eps / 2 * exact.abs() + 1e-5
    assert ((actual - exact).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_ends(dtype: torch.dtype) -> None:
    """Large values stay or vanish, infinity and zero stay, NaN is seen, and minus infinity makes one, as in PyTorch."""
    z = torch.tensor([60000.0, math.inf, 0.0, -60000.0, math.nan, -math.inf], device=DEVICE).to(dtype)
    out = finished(z)
    assert torch.equal(out[:3], z[:3])
    assert out[3] == 0
    assert out[4:].isnan().all()
    assert torch.equal(derivative(z).isnan(), torch.tensor([False, True, False, False, True, True], device=DEVICE))
