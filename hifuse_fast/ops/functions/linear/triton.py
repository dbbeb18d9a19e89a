"""The linear over maps in Triton: one kernel with norm and epilogue, or the vendor's product between two small kernels.

The table of tile sizes says which of the two, by the sides of the weight (`fused`); without norm, activation and residual there
is nothing to fuse, so it is the vendor's product. The one kernel takes the mean of its rows, then their variance, then the
product, and reads them each time, again from the caches. The backward is composed: GELU's derivative with the partial sums of
the bias gradient in one kernel, the normalised rows again, two products of the vendor, the backward of layer_norm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.backends.triton import device, pointwise
from hifuse_fast.backends.triton.launch import blocks, launch, precision, strided
from hifuse_fast.ops.functions.layer_norm import triton as layer_norm
from hifuse_fast.ops.functions.layer_norm.triton import row_offsets
from hifuse_fast.ops.functions.linear import composed

why_not = layer_norm.why_not  # of the width that is normalised, 1 for none

FEW_RESULTS = 2**20  # of which tiles of 128 x 128 are fewer than half of a large GPU's multiprocessors

# ---- Kernels -----------------------------------------------------------------------------------------------------------


@triton.jit
def _load_rows(
    x_ptr, row, k, rows, height, width, stride_b, stride_y, stride_x,
    C: tl.constexpr, K: tl.constexpr, PATCHES: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The columns k to k + BLOCK_K of the rows `row` [R, 1], zero off the map and past K."""
    column = k + tl.arange(0, BLOCK_K)[None, :]
    kept = (row < rows) & (column < K)
    if PATCHES:
        offset, on_map = row_offsets(row, column, height, width, stride_b, stride_y, stride_x, C, PATCHES)
        kept &= on_map
    else:
        offset = row * stride_x + column  # no division
    return tl.load(x_ptr + offset, mask=kept, other=0.0)


@triton.jit
def _forward_kernel(
    x_ptr,  # rows of a map [B, height, width, C] in 2x2 patches, strided; without PATCHES [rows, C], its rows strided
    weight_ptr,  # [N, K]
    bias_ptr,  # [N] or None
    norm_weight_ptr,  # [K] or None
    norm_bias_ptr,  # [K] or None
    residual_ptr,  # [rows, N] or None
    out_ptr,  # [rows, N]
    z_ptr,  # [rows, N] or None: what goes into GELU
    rows, height, width, stride_b, stride_y, stride_x, eps,
    C: tl.constexpr, K: tl.constexpr, N: tl.constexpr, PATCHES: tl.constexpr, GELU: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    # The tiles of a row lie next to each other in program order: x comes from memory once, the weight stays in L2.
    tile = tl.program_id(0) // tl.cdiv(N, BLOCK_N)
    n = tl.program_id(0) % tl.cdiv(N, BLOCK_N) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    if PATCHES:
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    else:
        row = tile.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]

    if norm_weight_ptr is not None:
        total = tl.zeros([BLOCK_M, BLOCK_S], tl.float32)
        for k in range(0, K, BLOCK_S):
            r = _load_rows(x_ptr, row, k, rows, height, width, stride_b, stride_y, stride_x, C, K, PATCHES, BLOCK_S)
            total += r.to(tl.float32)
        mean = tl.sum(total, 1, keep_dims=True) / K
        total = tl.zeros([BLOCK_M, BLOCK_S], tl.float32)
        left = tl.zeros([BLOCK_M, BLOCK_S], tl.float32)
        for k in range(0, K, BLOCK_S):
            r = _load_rows(x_ptr, row, k, rows, height, width, stride_b, stride_y, stride_x, C, K, PATCHES, BLOCK_S)
            centred = tl.where(k + tl.arange(0, BLOCK_S)[None, :] < K, r.to(tl.float32) - mean, 0.0)
            total += centred * centred
            left += centred
        # What the rounding of the mean left: times 1 / sqrt(eps) it would be seen in a row of equal values.
        shift = tl.sum(left, 1, keep_dims=True) / K
        mean += shift
        variance = tl.sum(total, 1, keep_dims=True) / K - shift * shift
        scale = tl.rsqrt(tl.maximum(variance, 0.0, propagate_nan=tl.PropagateNan.ALL) + eps)

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, K, BLOCK_K):
        r = _load_rows(x_ptr, row, k, rows, height, width, stride_b, stride_y, stride_x, C, K, PATCHES, BLOCK_K)
        if norm_weight_ptr is not None:
            column = k + tl.arange(0, BLOCK_K)[None, :]
            norm_weight = tl.load(norm_weight_ptr + column, mask=column < K, other=0.0).to(tl.float32)
            norm_bias = tl.load(norm_bias_ptr + column, mask=column < K, other=0.0).to(tl.float32)
            r = (r.to(tl.float32) - mean) * scale * norm_weight + norm_bias
        depth = k + tl.arange(0, BLOCK_K)[:, None]
        weight = tl.load(weight_ptr + n.to(tl.int64) * K + depth, mask=(n < N) & (depth < K), other=0.0)
        acc = device.dot(r.to(weight.dtype), weight, PRECISION, acc)

    if bias_ptr is not None:
        acc += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    kept = (row < rows) & (n < N)
    first = tile.to(tl.int64) * BLOCK_M * N
    place = tl.arange(0, BLOCK_M)[:, None] * N + n  # within the tile 32 bits do, and take fewer registers
    if z_ptr is not None:
        tl.store(z_ptr + first + place, acc.to(z_ptr.dtype.element_ty), mask=kept)
    if GELU:
        acc = device.gelu(acc, weight_ptr.dtype.element_ty)
    if residual_ptr is not None:
        acc += tl.load(residual_ptr + first + place, mask=kept, other=0.0).to(tl.float32)
    tl.store(out_ptr + first + place, acc.to(out_ptr.dtype.element_ty), mask=kept)


# ---- Launchers ---------------------------------------------------------------------------------------------------------


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    residual: Tensor | None,
    *,
    keep: bool,
    eps: float,
    rows: str,
    activation: str,
) -> tuple[Tensor, list[Tensor]]:
    """See `hifuse_fast.ops.linear`; arguments are validated, patches have a norm, the product is in the dtype of `weight`.

    It keeps what goes into GELU, [rows, N].
    """
    keep = keep and activation == "gelu"
    out, z = write(x, weight, bias, norm_weight, norm_bias, residual, eps, rows, activation, keep)
    return out, [z] if keep else []


def write(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    rows: str,
    activation: str,
    keep: bool,
    out: Tensor | None = None,
    by_size: bool = False,
) -> tuple[Tensor, Tensor]:
    """The result, in `out`, contiguous, where that is given; and what goes into GELU, empty where it is not to be kept.

    With `by_size` the table is asked for few results apart, as the frozen network does, which is called with one image too.
    """
    (columns, depth), gelu = weight.shape, activation == "gelu"
    height, width = (blocks(n, 2 if rows == "patches" else 1) for n in x.shape[1:3])
    count = x.shape[0] * height * width
    dtype = weight.dtype if residual is None else torch.promote_types(weight.dtype, residual.dtype)
    few = by_size and count * columns <= FEW_RESULTS
    words = ["norm"] * (norm_weight is not None) + ["few"] * few
    key = tables.key(depth, columns, *words, dtype=weight.dtype)
    config = dict(tables.lookup("linear_forward", key, tables.architecture(x.device)))
    fused = config.pop("fused") and count < 2**31 and (norm_weight is not None or gelu or residual is not None)
    if residual is not None:
        residual = residual.contiguous()

    z = weight.new_empty((count if keep else 0, columns))
    if not fused:
        r, transposed = normalised_rows(x, norm_weight, norm_bias, eps, rows, weight.dtype), weight.t()
        plain = not gelu and residual is None
        target = out.view(count, columns) if plain and out is not None else None
        product = torch.mm(r, transposed, out=target) if bias is None else torch.addmm(bias, r, transposed, out=target)
        if plain:
            return product.unflatten(0, (x.shape[0], height, width)) if out is None else out, z
        out = x.new_empty((x.shape[0], height, width, columns), dtype=dtype) if out is None else out
        pointwise.finish(product, residual, out, gelu=gelu)
        return out, product if keep else z

    out = x.new_empty((x.shape[0], height, width, columns), dtype=dtype) if out is None else out
    source = strided(x) if rows == "patches" else strided(x.reshape(count, depth))
    geometry = (*source.shape[1:3], *source.stride()[:3]) if rows == "patches" else (1, count, 0, 0, source.stride(0))
    vectors = [None if vector is None else vector.contiguous() for vector in (bias, norm_weight, norm_bias)]
    launch(
        _forward_kernel, (blocks(count, config["BLOCK_M"]) * blocks(columns, config["BLOCK_N"]),),
        source, weight.contiguous(), *vectors, residual, out, z if keep else None,
        count, *geometry, eps, C=x.shape[3], K=depth, N=columns, PATCHES=rows == "patches", GELU=gelu,
        PRECISION=precision(weight.dtype), **config,
    )  # fmt: skip
    return out, z


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    residual: None,
    *,
    kept: Sequence[Tensor],
    needs: Sequence[bool],
    eps: float,
    rows: str,
    activation: str,
) -> list[Tensor | None]:
    """Gradients of x and weight in their dtypes, and of bias, norm_weight and norm_bias in float32."""

    def gelu_backward(grad: Tensor, z: Tensor, need_bias: bool) -> tuple[Tensor, Tensor]:
        dz = torch.empty_like(z)
        return dz, pointwise.gelu_backward(grad, z, dz, need_bias=need_bias)

    def norm_backward(dr: Tensor) -> Sequence[Tensor | None]:
        assert norm_weight is not None
        assert norm_bias is not None
        asked = (needs[0], *needs[3:5])
        return layer_norm.backward(
            dr, x, norm_weight, norm_bias, kept=(), needs=asked, eps=eps, rows=rows, dtype=dr.dtype
        )  # fmt: skip

    return composed.backward(
        grad, x, weight, kept=kept, needs=needs, gelu_backward=gelu_backward,
        normalised_rows=lambda: normalised_rows(x, norm_weight, norm_bias, eps, rows, weight.dtype),
        norm_backward=None if norm_weight is None else norm_backward,
    )  # fmt: skip


def normalised_rows(
    x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float, rows: str, dtype: torch.dtype
) -> Tensor:
    """[rows, K] in the dtype of the product, normalised."""
    if norm_weight is not None and norm_bias is not None:
        return layer_norm.write(x, norm_weight, norm_bias, eps, rows, dtype).flatten(0, 2)
    return x.reshape(-1, x.shape[3]).to(dtype)
