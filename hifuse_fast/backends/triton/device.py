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


@triton.jit
def is_nan(x):
    return x != x  # noqa: PLR0124


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def largest(x, AXIS: tl.constexpr):
    """The largest value along an axis, or NaN where there is one: `tl.max` passes over it."""
    if INTERPRETED:  # which takes a function of ours element by element
        most = tl.where(tl.max(is_nan(x).to(tl.int32), AXIS) > 0, float("nan"), tl.max(x, AXIS))
    else:
        most = tl.reduce(x, AXIS, _larger)
    return most


# Of GELU a product's kernel computes as many as the product has rows times columns, on the units that move the data too: with
# erf it is half of the MLP's time. For maps of 16 bits Phi(-a) = 2^P(a), P of degree 7 fitted to log2 Phi(-a): it errs by 2e-5
# of Phi(-a) for a <= 4, by 1e-3 at a = 6, and below 2^-126 by anything. P falls without end, so that Phi(-inf) is 0.


@triton.jit
def _tail(z):
    """a = |z| and Phi(-a)."""
    a = tl.abs(z)
    p = 4.781600728165358e-5 - 1.1678304190354538e-6 * a
    p = p * a - 8.216409478336573e-4
    p = p * a + 8.089057169854641e-3
    p = p * a - 5.3144317120313644e-2
    p = p * a - 0.4592086970806122
    p = p * a - 1.1510097980499268
    return a, tl.exp2(p * a - 1.0)


@triton.jit
def gelu(z, DTYPE: tl.constexpr):
    """The exact GELU of float32 z, z Phi(z), to the precision of float32, or of DTYPE where that has 16 bits.

    Near zero the error is relative, and minus infinity gives NaN, both as in PyTorch.
    """
    if DTYPE == tl.float32:  # noqa: SIM300
        y = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    else:
        _, tail = _tail(z)
        y = z * tl.where(z > 0.0, 1.0 - tail, tail)
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
