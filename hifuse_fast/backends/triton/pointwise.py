"""What several ops do with each value after the vendor's product: GELU and residual, and the derivative of GELU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.backends.triton import device
from hifuse_fast.backends.triton.launch import blocks, launch


@triton.jit
def _finish_kernel(
    z_ptr,  # [length]
    residual_ptr,  # [length] or None
    out_ptr,  # [length]
    length,
    GELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    y = tl.load(z_ptr + i, mask=i < length, other=0.0).to(tl.float32)
    if GELU:
        y = device.gelu(y, z_ptr.dtype.element_ty)
    if residual_ptr is not None:
        y += tl.load(residual_ptr + i, mask=i < length, other=0.0).to(tl.float32)
    tl.store(out_ptr + i, y.to(out_ptr.dtype.element_ty), mask=i < length)


@triton.jit
def _activate_kernel(
    z_ptr,  # [length]: what goes into GELU, and then what comes out of it
    residual_ptr,  # [results]
    bias_ptr,  # [N] or None
    out_ptr,  # [results]
    length, results,
    N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # The first programs prepare what the next product is added to, the others are those of GELU.
    others = tl.cdiv(results, BLOCK)
    if tl.program_id(0) < others:
        start = tl.program_id(0).to(tl.int64) * BLOCK
        i = start + tl.arange(0, BLOCK)
        y = tl.load(residual_ptr + i, mask=i < results, other=0.0).to(tl.float32)
        if bias_ptr is not None:
            y += tl.load(bias_ptr + ((start % N).to(tl.int32) + tl.arange(0, BLOCK)) % N).to(tl.float32)
        tl.store(out_ptr + i, y.to(out_ptr.dtype.element_ty), mask=i < results)
    else:
        i = (tl.program_id(0) - others).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        z = tl.load(z_ptr + i, mask=i < length, other=0.0).to(tl.float32)
        tl.store(z_ptr + i, device.gelu(z, z_ptr.dtype.element_ty).to(z_ptr.dtype.element_ty), mask=i < length)


@triton.jit
def _gelu_backward_kernel(
    grad_ptr,  # [rows, N]
    z_ptr,  # [rows, N]
    dz_ptr,  # [rows, N]
    partial_ptr,  # [programs, N] float32, or None: of the gradient of the bias
    rows,
    N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    dbias = tl.zeros([BLOCK_R, BLOCK_N], tl.float32)
    for start in range(program * BLOCK_R, rows, tl.num_programs(0).to(tl.int64) * BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)[:, None]
        kept = (row < rows) & (n < N)
        grad = tl.load(grad_ptr + row * N + n, mask=kept, other=0.0).to(tl.float32)
        z = tl.load(z_ptr + row * N + n, mask=kept, other=0.0).to(tl.float32)
        dz = grad * device.gelu_derivative(z, z_ptr.dtype.element_ty)
        dbias += dz
        tl.store(dz_ptr + row * N + n, dz.to(dz_ptr.dtype.element_ty), mask=kept)
    if partial_ptr is not None:
        tl.store(partial_ptr + program * N + n, tl.sum(dbias, 0, keep_dims=True), mask=n < N)


def finish(z: Tensor, residual: Tensor | None, out: Tensor, *, gelu: bool) -> None:
    """Write residual + gelu(z), or without GELU residual + z, to `out`, which may be an input. All are contiguous and alike."""
    config = tables.lookup("linear_finish", "*", tables.architecture(z.device))
    launch(_finish_kernel, (blocks(z.numel(), config["BLOCK"]),), z, residual, out, z.numel(), GELU=gelu, **config)


def activate(z: Tensor, residual: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Write gelu(z) to `z`, and residual + bias, a bias of the columns, to `out`, to which a product is to be added. So the
    library's product needs no pass after it. All are contiguous, `residual` and `out` alike, [rows, N].
    """
    config = tables.lookup("linear_finish", "*", tables.architecture(z.device))
    grid = (blocks(out.numel(), config["BLOCK"]) + blocks(z.numel(), config["BLOCK"]),)
    launch(_activate_kernel, grid, z, residual, bias, out, z.numel(), out.numel(), N=out.shape[1], **config)


def gelu_backward(grad: Tensor, z: Tensor, dz: Tensor, *, need_bias: bool) -> Tensor:
    """Write the gradient of z [rows, N], the input of GELU, to `dz`. Return that of the bias in z, empty if not needed."""
    count, columns = z.shape
    config = dict(tables.lookup("linear_backward", tables.key(columns), tables.architecture(z.device)))
    programs = min(config.pop("programs"), blocks(count, config["BLOCK_R"]))
    partial = z.new_empty((programs, columns), dtype=torch.float32) if need_bias else None
    grid = (programs, blocks(columns, config["BLOCK_N"]))
    launch(_gelu_backward_kernel, grid, grad, z, dz, partial, count, N=columns, **config)
    return z.new_empty(0) if partial is None else partial.sum(0)
