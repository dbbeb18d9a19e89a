"""Batch normalisation in Triton.

Statistics: a program takes a share of the pixels and a block of channels, and merges the mean and the sum of squared
differences of tile after tile (Chan et al. 1979), so that nothing cancels; a second kernel merges the shares. The output is
then one pass over the map, with activation, pooling and residual. Backward: sums over the pixels, in shares, and another pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.backends.triton.device import gelu, gelu_derivative
from hifuse_fast.backends.triton.launch import blocks, launch
from hifuse_fast.backends.triton.launch import why_not as why_not_triton


def why_not(*, device: torch.device, dtype: torch.dtype, **_: Any) -> str | None:
    """The reason the Triton kernels cannot serve this call, or None."""
    return why_not_triton(device, dtype)


# ---- Kernels -----------------------------------------------------------------------------------------------------------


@triton.jit
def _activate(z, ACTIVATION: tl.constexpr, DTYPE: tl.constexpr):
    if ACTIVATION == "relu":
        z = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "gelu":
        z = gelu(z, DTYPE)
    elif ACTIVATION == "sigmoid":
        z = tl.sigmoid(z)
    return z


@triton.jit
def _activation_derivative(z, ACTIVATION: tl.constexpr, DTYPE: tl.constexpr):
    if ACTIVATION == "relu":
        d = tl.where(z <= 0.0, 0.0, 1.0)  # of NaN it is 1, as in PyTorch
    elif ACTIVATION == "gelu":
        d = gelu_derivative(z, DTYPE)
    elif ACTIVATION == "sigmoid":
        d = tl.sigmoid(z)
        d = d * (1.0 - d)
    else:
        d = tl.full(z.shape, 1.0, tl.float32)
    return d


@triton.jit
def _statistics_kernel(
    x_ptr,  # [rows, C]
    partial_ptr,  # [3, shares, C] float32: count, mean, sum of squared differences from it
    rows,
    C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    share, shares = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    inside = channel < C
    count = 0.0
    mean = tl.zeros([1, BLOCK_C], tl.float32)
    squares = tl.zeros([1, BLOCK_C], tl.float32)
    for start in range(share * BLOCK_R, rows, shares * BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)[:, None]
        kept = (row < rows) & inside
        x = tl.load(x_ptr + row * C + channel, mask=kept, other=0.0).to(tl.float32)
        more = tl.minimum(rows - start, BLOCK_R).to(tl.float32)
        tile_mean = tl.sum(x, 0, keep_dims=True) / more
        centred = tl.where(kept, x - tile_mean, 0.0)
        missed = tl.sum(centred, 0, keep_dims=True) / more  # by rounding the mean
        together = count + more
        delta = tile_mean + missed - mean
        squares += tl.sum(centred * centred, 0, keep_dims=True) - missed * missed * more
        squares += delta * delta * (count * (more / together))
        mean += delta * (more / together)
        count = together
    place = partial_ptr + share * C + channel
    tl.store(place, tl.full([1, BLOCK_C], 0.0, tl.float32) + count, mask=inside)
    tl.store(place + shares * C, mean, mask=inside)
    tl.store(place + 2 * shares * C, squares, mask=inside)


@triton.jit
def _merge_kernel(
    partial_ptr,  # [3, shares, C] float32
    mean_ptr, var_ptr,  # [C] float32
    shares,
    C: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    share = tl.arange(0, BLOCK_S)[:, None]
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    kept = (share < shares) & (channel < C)
    place = partial_ptr + share * C + channel
    count = tl.load(place, mask=kept, other=0.0)
    means = tl.load(place + shares * C, mask=kept, other=0.0)
    squares = tl.load(place + 2 * shares * C, mask=kept, other=0.0)
    total = tl.maximum(tl.sum(count, 0, keep_dims=True), 1.0)
    mean = tl.sum(means * (count / total), 0, keep_dims=True)
    delta = means - mean
    var = (tl.sum(squares, 0, keep_dims=True) + tl.sum(delta * delta * count, 0, keep_dims=True)) / total
    tl.store(mean_ptr + channel, mean, mask=channel < C)
    tl.store(var_ptr + channel, var, mask=channel < C)


@triton.jit
def _parameters(weight_ptr, bias_ptr, mean_ptr, var_ptr, eps, channel, inside):
    """weight, bias, mean and 1 / sqrt(var + eps) of a block of channels, float32."""
    weight = tl.load(weight_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    mean = tl.load(mean_ptr + channel, mask=inside, other=0.0)
    return weight, bias, mean, tl.rsqrt(tl.load(var_ptr + channel, mask=inside, other=1.0) + eps)


@triton.jit
def _pooled(row, height, width):
    """The 2x2 patch in which pixel `row` of maps [B, height, width] lies, counted as a pixel of the pooled maps."""
    x, rest = row % width, row // width
    return (rest // height * (height // 2) + rest % height // 2) * (width // 2) + x // 2


@triton.jit
def _forward_kernel(
    x_ptr,  # [B, height, width, C]
    weight_ptr, bias_ptr, mean_ptr, var_ptr,  # [C]
    residual_ptr,  # [rows, C], rows of the output
    out_ptr,  # [rows, C]
    rows, height, width, eps,
    C: tl.constexpr, ACTIVATION: tl.constexpr, POOL: tl.constexpr, RESIDUAL: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    inside = channel < C
    kept = (row < rows) & inside
    weight, bias, mean, scale = _parameters(weight_ptr, bias_ptr, mean_ptr, var_ptr, eps, channel, inside)
    y = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    if POOL:
        x, rest = row % (width // 2), row // (width // 2)
        corner = (rest * 2 * width + 2 * x) * C + channel  # the images have even heights: rows of patches follow each other
        for pixel in tl.static_range(4):
            offset = corner + ((pixel // 2) * width + pixel % 2) * C
            z = (tl.load(x_ptr + offset, mask=kept, other=0.0).to(tl.float32) - mean) * (scale * weight) + bias
            y += 0.25 * _activate(z, ACTIVATION, x_ptr.dtype.element_ty)
    else:
        z = (tl.load(x_ptr + row * C + channel, mask=kept, other=0.0).to(tl.float32) - mean) * (scale * weight) + bias
        y = _activate(z, ACTIVATION, x_ptr.dtype.element_ty)
    if RESIDUAL:
        y += tl.load(residual_ptr + row * C + channel, mask=kept, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * C + channel, y.to(out_ptr.dtype.element_ty), mask=kept)


@triton.jit
def _gradient(
    grad_ptr, x_ptr, row, channel, kept, weight, bias, mean, scale, height, width,
    C: tl.constexpr, ACTIVATION: tl.constexpr, POOL: tl.constexpr,
):  # fmt: skip
    """The gradient of the normalised, scaled x before its activation, and the normalised x."""
    if POOL:
        grad = 0.25 * tl.load(grad_ptr + _pooled(row, height, width) * C + channel, mask=kept, other=0.0).to(tl.float32)
    else:
        grad = tl.load(grad_ptr + row * C + channel, mask=kept, other=0.0).to(tl.float32)
    normed = (tl.load(x_ptr + row * C + channel, mask=kept, other=0.0).to(tl.float32) - mean) * scale
    return grad * _activation_derivative(normed * weight + bias, ACTIVATION, x_ptr.dtype.element_ty), normed


@triton.jit
def _backward_sums_kernel(
    grad_ptr,  # [B, height, width, C], or pooled
    x_ptr,  # [B, height, width, C]
    weight_ptr, bias_ptr, mean_ptr, var_ptr,  # [C]
    partial_ptr,  # [2, shares, C] float32: of the gradients of weight and bias
    rows, height, width, eps,
    C: tl.constexpr, ACTIVATION: tl.constexpr, POOL: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    share, shares = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    inside = channel < C
    weight, bias, mean, scale = _parameters(weight_ptr, bias_ptr, mean_ptr, var_ptr, eps, channel, inside)
    dweight = tl.zeros([1, BLOCK_C], tl.float32)
    dbias = tl.zeros([1, BLOCK_C], tl.float32)
    for start in range(share * BLOCK_R, rows, shares * BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)[:, None]
        kept = (row < rows) & inside
        dz, normed = _gradient(
            grad_ptr, x_ptr, row, channel, kept, weight, bias, mean, scale, height, width, C, ACTIVATION, POOL
        )  # fmt: skip
        dweight += tl.sum(tl.where(kept, dz * normed, 0.0), 0, keep_dims=True)
        dbias += tl.sum(dz, 0, keep_dims=True)
    place = partial_ptr + share * C + channel
    tl.store(place, dweight, mask=inside)
    tl.store(place + shares * C, dbias, mask=inside)


@triton.jit
def _backward_kernel(
    grad_ptr,  # [B, height, width, C], or pooled
    x_ptr,  # [B, height, width, C]
    weight_ptr, bias_ptr, mean_ptr, var_ptr,  # [C]
    dweight_ptr, dbias_ptr,  # [C] float32
    dx_ptr,  # [B, height, width, C]
    rows, height, width, eps,
    C: tl.constexpr, ACTIVATION: tl.constexpr, POOL: tl.constexpr, TRAINING: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    inside = channel < C
    kept = (row < rows) & inside
    weight, bias, mean, scale = _parameters(weight_ptr, bias_ptr, mean_ptr, var_ptr, eps, channel, inside)
    dz, normed = _gradient(grad_ptr, x_ptr, row, channel, kept, weight, bias, mean, scale, height, width, C, ACTIVATION, POOL)
    if TRAINING:
        dweight = tl.load(dweight_ptr + channel, mask=inside, other=0.0)
        dbias = tl.load(dbias_ptr + channel, mask=inside, other=0.0)
        dz -= (dbias + normed * dweight) / rows
    tl.store(dx_ptr + row * C + channel, (dz * (scale * weight)).to(dx_ptr.dtype.element_ty), mask=kept)


# ---- Launchers ---------------------------------------------------------------------------------------------------------


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all pixels of x [B, H, W, C]: [C], float32."""
    rows, channels, x = x.numel() // x.shape[3], x.shape[3], x.contiguous()
    tile, shares, options = _tiles("batch_norm_statistics", rows, x)
    partial = x.new_empty((3, shares, channels), dtype=torch.float32)
    mean, var = (x.new_empty(channels, dtype=torch.float32) for _ in range(2))
    grid = (shares, blocks(channels, tile["BLOCK_C"]))
    launch(_statistics_kernel, grid, x, partial, rows, C=channels, **tile, **options)
    launch(
        _merge_kernel, (blocks(channels, 16),), partial, mean, var, shares,
        C=channels, BLOCK_S=triton.next_power_of_2(shares), BLOCK_C=16, num_warps=4,
    )  # fmt: skip
    return mean, var


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, mean: Tensor | None, var: Tensor | None,
    *, keep: bool, training: bool, eps: float, activation: str, pool: bool,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """See `hifuse_fast.ops.batch_norm`; arguments are validated; the result is of `dtype`."""
    batch, height, width, channels = x.shape
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    out = x.new_empty((batch, height // 2, width // 2, channels) if pool else (*x.shape,), dtype=dtype)
    kept = list(statistics(x)) if training else []
    now = _statistics(kept, mean, var)
    return write(x, weight, bias, residual, *now, eps, activation, pool, out), kept


def write(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, mean: Tensor, var: Tensor,
    eps: float, activation: str, pool: bool, out: Tensor,
) -> Tensor:  # fmt: skip
    """`forward` into `out`, contiguous, which is returned."""
    _, height, width, channels = x.shape
    x, rows = x.contiguous(), out.numel() // channels
    tile, _, options = _tiles("batch_norm_forward", rows, x)
    launch(
        _forward_kernel, (blocks(rows, tile["BLOCK_R"]), blocks(channels, tile["BLOCK_C"])), x,
        *_vectors(weight, bias, mean, var), x if residual is None else residual.contiguous(), out, rows, height, width, eps,
        C=channels, ACTIVATION=activation, POOL=pool, RESIDUAL=residual is not None, **tile, **options,
    )  # fmt: skip
    return out


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, residual: None, mean: Tensor | None, var: Tensor | None,
    *, kept: Sequence[Tensor], needs: Sequence[bool], training: bool, eps: float, activation: str, pool: bool,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of x in its dtype, of weight and bias in float32."""
    _, height, width, channels = x.shape
    now = _statistics(kept, mean, var)
    x, grad = x.contiguous(), grad.contiguous()
    vectors, rows = _vectors(weight, bias, *now), x.numel() // channels
    tile, shares, options = _tiles("batch_norm_backward_sums", rows, x)
    partial = x.new_empty((2, shares, channels), dtype=torch.float32)
    dweight, dbias = partial[:, 0]  # sums, which outside training only the gradients of weight and bias ask for
    if training or needs[1] or needs[2]:
        launch(
            _backward_sums_kernel, (shares, blocks(channels, tile["BLOCK_C"])), grad, x, *vectors, partial,
            rows, height, width, eps, C=channels, ACTIVATION=activation, POOL=pool, **tile, **options,
        )  # fmt: skip
        dweight, dbias = partial.sum(1)
    if not needs[0]:
        return [None, dweight, dbias, None, None, None]
    dx = torch.empty_like(x)
    tile, _, options = _tiles("batch_norm_backward", rows, x)
    launch(
        _backward_kernel, (blocks(rows, tile["BLOCK_R"]), blocks(channels, tile["BLOCK_C"])), grad, x, *vectors, dweight, dbias,
        dx, rows, height, width, eps, C=channels, ACTIVATION=activation, POOL=pool, TRAINING=training, **tile, **options,
    )  # fmt: skip
    return [dx, dweight, dbias, None, None, None]


def _statistics(kept: Sequence[Tensor], *running: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance: those of the batch, which the forward keeps in training, or the running ones."""
    mean, var = kept or [each for each in running if each is not None]
    return mean, var


def _vectors(*vectors: Tensor) -> list[Tensor]:
    return [vector.contiguous() for vector in vectors]


def _tiles(kernel: str, rows: int, x: Tensor) -> tuple[dict[str, int], int, dict[str, int]]:
    """The sides of a tile, the number of shares of the rows, and what else is configured."""
    config = dict(tables.lookup(kernel, tables.key(x.shape[3]), tables.architecture(x.device)))
    block = min(triton.next_power_of_2(x.shape[3]), config.pop("channels"))
    tile = {"BLOCK_R": max(1, config.pop("elements") // block), "BLOCK_C": block}
    shares = max(1, min(config.pop("programs", 1) // blocks(x.shape[3], block), blocks(rows, tile["BLOCK_R"])))
    return tile, shares, config
