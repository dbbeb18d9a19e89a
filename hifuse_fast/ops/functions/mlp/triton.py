"""The MLP in Triton: one kernel that keeps the hidden map in registers, or the vendor's products over some pixels at a time.

The table of tile sizes says which of the two, by the sides (`fused`). In the one kernel a program takes some pixels, keeps all
their channels and the sums of all results, and walks over the hidden units: it computes some, and multiplies them with their
part of the second weight. A power of two that holds 3 * 2^n channels would be far too large, so they are two of them each.

The other way, and the backward always, goes through memory of bounded size (`scratch`, KiB): as many pixels at a time as have
their hidden units there; see composed.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.backends.triton import device, pointwise
from hifuse_fast.backends.triton.launch import blocks, launch, precision, strided
from hifuse_fast.backends.triton.launch import why_not as why_not_triton
from hifuse_fast.ops.functions.mlp import composed

FEW_ROWS = 32768  # of which the one kernel, 128 rows a program, has too few programs to fill a GPU


def why_not(*, device: torch.device, dtype: torch.dtype, **_: Any) -> str | None:
    """The reason the Triton kernels cannot serve this call, or None."""
    return why_not_triton(device, dtype)


# ---- Kernels -----------------------------------------------------------------------------------------------------------


@triton.jit
def _store_columns(acc, bias_ptr, residual_ptr, out_ptr, first, row, n, rows, N: tl.constexpr):
    """residual + acc + bias to the columns n [1, C] of the rows first + row [R, 1], of which `rows` are there."""
    kept = (row < rows) & (n < N)
    place = row * N + n
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        acc += tl.load(residual_ptr + first * N + place, mask=kept, other=0.0).to(tl.float32)
    tl.store(out_ptr + first * N + place, acc.to(out_ptr.dtype.element_ty), mask=kept)


@triton.jit
def _forward_kernel(
    u_ptr,  # [rows, K], its rows strided
    expand_ptr,  # [H, K]
    expand_bias_ptr,  # [H] or None
    project_ptr,  # [N, H]
    project_bias_ptr,  # [N] or None
    residual_ptr,  # [rows, N] or None
    out_ptr,  # [rows, N]
    rows, stride,
    K: tl.constexpr, H: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr, REST_K: tl.constexpr, BLOCK_N: tl.constexpr, REST_N: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    # The columns of a row are k and far, those of a result n and m.
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    row = tl.arange(0, BLOCK_M)[:, None]  # within the tile, where 32 bits do
    rows = tl.minimum(rows - first, BLOCK_M).to(tl.int32)
    u_ptr += first * stride
    n = tl.arange(0, BLOCK_N)[None, :]
    k = tl.arange(0, BLOCK_K)
    u = tl.load(u_ptr + (row * stride + k[None, :]), mask=(row < rows) & (k[None, :] < K), other=0.0)
    u = u.to(expand_ptr.dtype.element_ty)
    if REST_K:
        far = BLOCK_K + tl.arange(0, REST_K)
        rest = tl.load(u_ptr + (row * stride + far[None, :]), mask=(row < rows) & (far[None, :] < K), other=0.0)
        rest = rest.to(expand_ptr.dtype.element_ty)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if REST_N:
        m = BLOCK_N + tl.arange(0, REST_N)[None, :]
        acc_rest = tl.zeros([BLOCK_M, REST_N], tl.float32)
    for start in range(0, H, BLOCK_H):
        unit = start + tl.arange(0, BLOCK_H)
        expand = tl.load(expand_ptr + (unit[None, :] * K + k[:, None]), mask=(unit[None, :] < H) & (k[:, None] < K), other=0.0)
        h = device.dot(u, expand, PRECISION)
        if REST_K:
            expand_rest = tl.load(
                expand_ptr + (unit[None, :] * K + far[:, None]), mask=(unit[None, :] < H) & (far[:, None] < K), other=0.0
            )
            h = device.dot(rest, expand_rest, PRECISION, h)
        if expand_bias_ptr is not None:
            h += tl.load(expand_bias_ptr + unit, mask=unit < H, other=0.0).to(tl.float32)[None, :]
        h = device.gelu(h, expand.dtype).to(expand.dtype)
        project = tl.load(project_ptr + (n * H + unit[:, None]), mask=(unit[:, None] < H) & (n < N), other=0.0)
        acc = device.dot(h, project, PRECISION, acc)
        if REST_N:
            project_rest = tl.load(project_ptr + (m * H + unit[:, None]), mask=(unit[:, None] < H) & (m < N), other=0.0)
            acc_rest = device.dot(h, project_rest, PRECISION, acc_rest)
    _store_columns(acc, project_bias_ptr, residual_ptr, out_ptr, first, row, n, rows, N)
    if REST_N:
        _store_columns(acc_rest, project_bias_ptr, residual_ptr, out_ptr, first, row, m, rows, N)


@triton.jit
def _backward_kernel(
    h_ptr,  # [length]: what goes into GELU, and then what comes out of it
    dh_ptr,  # [length]: the gradient of what comes out, and then of what goes in
    length,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(h_ptr + i, mask=i < length, other=0.0).to(tl.float32)
    grad = tl.load(dh_ptr + i, mask=i < length, other=0.0).to(tl.float32)
    dz = grad * device.gelu_derivative(z, h_ptr.dtype.element_ty)
    tl.store(h_ptr + i, device.gelu(z, h_ptr.dtype.element_ty).to(h_ptr.dtype.element_ty), mask=i < length)
    tl.store(dh_ptr + i, dz.to(dh_ptr.dtype.element_ty), mask=i < length)


# ---- Launchers ---------------------------------------------------------------------------------------------------------


def forward(u: Tensor, expand_weight: Tensor, project_weight: Tensor, *, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """See `hifuse_fast.ops.mlp`; arguments are validated, the products are in the dtype of the weights."""
    return write(u, expand_weight, None, project_weight, None, None), []


def write(
    u: Tensor,
    expand: Tensor,
    expand_bias: Tensor | None,
    project: Tensor,
    project_bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor | None = None,
) -> Tensor:
    """`forward` with biases and a residual, contiguous, where they are given; into `out`, contiguous, where that is."""
    (hidden, depth), columns = expand.shape, len(project)
    out = expand.new_empty((*u.shape[:3], columns)) if out is None else out
    rows, target = u.reshape(-1, depth), out.view(-1, columns)
    key = tables.key(depth, hidden, columns, "few" if len(rows) < FEW_ROWS else "", dtype=expand.dtype)
    config = dict(tables.lookup("mlp_forward", key, tables.architecture(u.device)))
    if config.pop("fused"):
        rows = strided(rows)
        (block_k, rest_k), (block_n, rest_n) = _powers(depth), _powers(columns)
        launch(
            _forward_kernel, (blocks(len(rows), config["BLOCK_M"]),),
            rows, expand.contiguous(), expand_bias, project.contiguous(), project_bias, residual, target,
            len(rows), rows.stride(0), K=depth, H=hidden, N=columns, PRECISION=precision(expand.dtype),
            BLOCK_K=block_k, REST_K=rest_k, BLOCK_N=block_n, REST_N=rest_n, **config,
        )  # fmt: skip
        return out

    added = None if residual is None else residual.view(-1, columns)
    parts, size = composed.parts(len(rows), hidden * expand.element_size(), config["scratch"])
    scratch = expand.new_empty((size, hidden))
    for i in range(parts):
        part = slice(i * size, (i + 1) * size)
        x = rows[part].to(expand.dtype)
        h, y = _product(x, expand, expand_bias, scratch[: len(x)]), target[part]
        if added is None:
            pointwise.finish(h, None, h, gelu=True)
            _product(h, project, project_bias, y)
        else:
            pointwise.activate(h, added[part], project_bias, y)
            y.addmm_(h, project.t())
    return out


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """x weight^T + bias, the vendor's."""
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def backward(
    grad: Tensor, u: Tensor, expand_weight: Tensor, project_weight: Tensor, *, kept: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of u, expand_weight and project_weight in their dtypes."""
    config = dict(tables.lookup("mlp_backward", "*", tables.architecture(u.device)))
    scratch = config.pop("scratch")

    def gelu_backward(h: Tensor, dh: Tensor) -> tuple[Tensor, Tensor]:
        launch(_backward_kernel, (blocks(h.numel(), config["BLOCK"]),), h, dh, h.numel(), **config)
        return h, dh

    return composed.backward(
        grad, u, expand_weight, project_weight, needs=needs, scratch=scratch, gelu_backward=gelu_backward
    )  # fmt: skip


def _powers(width: int) -> tuple[int, int]:
    """Two powers of two that hold a width together, as closely as they can; the second may be 0."""
    block = max(16, 1 << (width.bit_length() - 1))
    return block, max(16, triton.next_power_of_2(width - block)) if width > block else 0
