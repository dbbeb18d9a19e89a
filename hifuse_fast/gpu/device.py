"""Functions that kernels of several ops call."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def dot(a, b, PRECISION: tl.constexpr, acc=None):
    """a b + acc in float32. The interpreter takes the bits of bfloat16 for integers, so it is given float32 of equal value."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def normalise(r, kept, eps, K: tl.constexpr):
    """(r - mean) / sqrt(var + eps) and 1 / sqrt(var + eps), over the K columns `kept` of each row of r [R, BLOCK_K]."""
    mean = tl.sum(tl.where(kept, r, 0.0), 1, keep_dims=True) / K
    centred = tl.where(kept, r - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1, keep_dims=True) / K + eps)
    return centred * scale, scale


@triton.jit
def gelu(z):
    """The exact GELU of float32 z: z Phi(z), with erf."""
    return 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))


@triton.jit
def gelu_derivative(z):
    """Phi(z) + z phi(z), the derivative of the exact GELU at float32 z."""
    return 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
