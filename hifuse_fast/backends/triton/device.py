"""Functions that kernels of several ops call."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def dot(a, b, PRECISION: tl.constexpr, acc=None):
    """a b + acc in float32. The interpreter would take the bits of bfloat16 for integers, so it gets float32 of equal value."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def normalise(r, kept, eps, K: tl.constexpr):
    """(r - mean) / sqrt(var + eps) and 1 / sqrt(var + eps), over the K columns `kept` of each row of r [R, BLOCK_K].

    Centred twice: the rounding of the first mean, times 1 / sqrt(eps), would be seen in a row of equal values.
    """
    mean = tl.sum(tl.where(kept, r, 0.0), 1, keep_dims=True) / K
    centred = tl.where(kept, r - mean, 0.0)
    centred = tl.where(kept, centred - tl.sum(centred, 1, keep_dims=True) / K, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1, keep_dims=True) / K + eps)
    return centred * scale, scale


# Of GELU a product's kernel computes as many as the product has rows times columns, on the units that move the data too: with
# erf it is half of the MLP's time. For maps of 16 bits Phi(-a) = 2^P(a), P of degree 6 fitted to log2 Phi(-a) on 0 <= a <= 5.5:
# 2e-5 of Phi(-a) for a <= 4, 3e-8 everywhere. Beyond 5.5 it stays what it is there, 2e-8.


@triton.jit
def _tail(z):
    """a = min(|z|, 5.5) and Phi(-a)."""
    a = tl.minimum(tl.abs(z), 5.5, propagate_nan=tl.PropagateNan.ALL)
    p = 2.835331620364771e-5 * a - 6.948122570223796e-4
    p = p * a + 7.683012542142493e-3
    p = p * a - 5.248914629618064e-2
    p = p * a - 0.459691426856039
    p = p * a - 1.1508934004762428
    return a, tl.exp2(p * a - 1.0)


@triton.jit
def gelu(z, DTYPE: tl.constexpr):
    """The exact GELU of float32 z, z Phi(z), to the precision of float32, or of DTYPE where that has 16 bits."""
    if DTYPE == tl.float32:  # noqa: SIM300
        y = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    else:
        a, tail = _tail(z)
        y = tl.maximum(z, 0.0) - a * tail
    return y


@triton.jit
def gelu_derivative(z, DTYPE: tl.constexpr):
    """Phi(z) + z phi(z), the derivative of the exact GELU at float32 z, as precise as `gelu`."""
    if DTYPE == tl.float32:  # noqa: SIM300
        d = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
    else:
        a, tail = _tail(z)
        d = tail - a * 0.3989422804014327 * tl.exp2(-0.7213475204444817 * a * a)
        d = tl.where(z > 0.0, 1.0 - d, d)
    return d
