"""Window attention in Triton: the launchers. The kernels, and how they walk over windows: triton_kernels.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.backends.triton.launch import blocks, launch, precision, strided
from hifuse_fast.backends.triton.launch import why_not as why_not_triton
from hifuse_fast.ops.functions.window_attention import limits
from hifuse_fast.ops.functions.window_attention.triton_kernels import (
    backward_kernel,
    forward_kernel,
    keys_kernel,
    queries_kernel,
    table_kernel,
)

HEAD_DIMS = range(8, 129)
SUMMANDS = 4096  # of the table's gradient, at a time


def why_not(*, device: torch.device, dtype: torch.dtype, head_dim: int = 32, dropout_p: float = 0.0, **_: Any) -> str | None:
    """The reason the Triton kernels cannot serve this call, or None."""
    return limits.why_not(HEAD_DIMS, head_dim, dropout_p) or why_not_triton(device, dtype)


def forward(
    qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor | None, *, keep: bool, **options: Any
) -> tuple[Tensor, list[Tensor]]:
    """See `hifuse_fast.ops.window_attention`; arguments are validated."""
    out = qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))
    return write(qkv, bias_table, qkv_bias, out, **options), []


def write(
    qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor | None, out: Tensor,
    *, num_heads: int, window_size: int, shift_size: int, scale: float,
) -> Tensor:  # fmt: skip
    """`forward` into `out`, contiguous."""
    qkv = strided(qkv)
    constants, programs, options = _plan("window_attention_forward", qkv, num_heads, window_size, shift_size)
    geometry = _geometry(qkv, window_size)
    grid = (num_heads, _shares(geometry[0], constants, programs), constants["BLOCKS"])
    launch(
        forward_kernel, grid, qkv, bias_table.contiguous(), _padded_token(qkv, qkv_bias), out,
        *geometry, scale, **constants, **options,
    )  # fmt: skip
    return out


def backward(
    grad: Tensor, qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor | None,
    *, kept: Sequence[Tensor], needs: Sequence[bool], num_heads: int, window_size: int, shift_size: int, scale: float,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of qkv and bias_table in their dtypes, and of the bias in float32."""
    need_map, need_table = needs[0] or needs[2], needs[1]
    qkv, table, tokens = strided(qkv), bias_table.contiguous(), window_size**2
    dqkv, dtable = torch.empty_like(qkv, memory_format=torch.contiguous_format), torch.empty_like(table)
    constants, programs, options = _plan("window_attention_backward", qkv, num_heads, window_size, shift_size)
    geometry, parts = _geometry(qkv, window_size), constants["BLOCKS"]
    windows, shares = geometry[0], _shares(geometry[0], constants, programs)
    grid = (num_heads, shares, parts)
    dbias = qkv.new_empty((shares, num_heads, tokens, tokens), dtype=torch.float32)
    dpadding = qkv.new_empty((windows * tokens - qkv[..., 0].numel(), qkv.shape[3]))
    inputs = (qkv, table, _padded_token(qkv, qkv_bias), grad.contiguous(), dqkv, dpadding)
    if parts == 1:
        launch(backward_kernel, grid, *inputs, dbias, *geometry, scale, MAP=need_map, **constants, **options)
    else:
        statistics = qkv.new_empty((windows, num_heads, 3, parts * constants["BLOCK"]), dtype=torch.float32)
        launch(queries_kernel, grid, *inputs, statistics, dbias.zero_(), *geometry, scale, **constants, **options)
        if need_map:
            launch(keys_kernel, grid, *inputs, statistics, *geometry, scale, **constants, **options)
    block = triton.next_power_of_2(tokens)
    tile = {"BLOCK_S": max(1, SUMMANDS // block), "BLOCK_N": block}
    if need_table:
        launch(
            table_kernel, (num_heads, len(table)), dbias, dtable, shares, HEADS=num_heads, M=window_size, **tile, num_warps=4
        )
    dpadded = dpadding.sum(0, dtype=torch.float32) if needs[2] else None
    return [dqkv if needs[0] else None, dtable if need_table else None, dpadded]


def _plan(
    kernel: str, qkv: Tensor, num_heads: int, window_size: int, shift_size: int
) -> tuple[dict[str, Any], int, dict[str, int]]:
    """The compile-time arguments of a kernel, about how many programs it shall have, and Triton's own options."""
    head_dim, tokens = qkv.shape[3] // (3 * num_heads), window_size**2
    most_tokens, block_d = max(16, triton.next_power_of_2(tokens)), max(16, triton.next_power_of_2(head_dim))
    key = tables.key(most_tokens, block_d, dtype=qkv.dtype)
    options = dict(tables.lookup(kernel, key, tables.architecture(qkv.device)))
    block = min(options.pop("block"), most_tokens)
    constants = {
        "HEADS": num_heads,
        "D": head_dim,
        "M": window_size,
        "SHIFT": shift_size,
        "PADDED": bool(qkv.shape[1] % window_size or qkv.shape[2] % window_size),
        "PRECISION": precision(qkv.dtype),
        "BLOCK": block,
        "BLOCK_D": block_d,
        "BLOCKS": blocks(tokens, block),
    }
    return constants, options.pop("programs"), options


def _geometry(qkv: Tensor, window_size: int) -> tuple[int, ...]:
    """The number of windows, their rows and columns in an image, height and width of the map, and its strides."""
    batch, height, width, _ = qkv.shape
    rows, columns = blocks(height, window_size), blocks(width, window_size)
    return (batch * rows * columns, rows, columns, height, width, *qkv.stride()[:3])


def _padded_token(qkv: Tensor, qkv_bias: Tensor | None) -> Tensor:
    """q, k, v [3C] of a padded token, in the dtype of the map."""
    return qkv.new_zeros(qkv.shape[3:]) if qkv_bias is None else qkv_bias.to(qkv.dtype).contiguous()


def _shares(windows: int, constants: dict[str, Any], programs: int) -> int:
    """Into how many shares the windows are cut: for at most about `programs` programs, which all have as many or one fewer."""
    most = blocks(windows, max(1, programs // (constants["HEADS"] * constants["BLOCKS"])))
    return blocks(windows, max(1, most))
