"""Whole blocks in one kernel each: what csrc/cuda/local_block.cuh and csrc/cuda/global_block.cuh serve, and how weights lie.

The kernels are compiled for maps of up to `NARROW` and up to `WIDE` channels. Weights are filled up with zeros to one of them.
The table says from how many pixels of a call on a kernel is taken; else the parts of the block are called.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.backends.tape import listed
from hifuse_fast.backends.tracing import constant

NARROW, WIDE = 96, 192  #: channels; as csrc/cuda/block_ops.h has them
HEAD = 32  #: channels of a head, filled up
LARGEST_WINDOW = 7
DTYPES = (torch.bfloat16, torch.float16)


def room(channels: int, num_heads: int = 1) -> int:
    """For how many channels the kernel is compiled that serves such a block."""
    return NARROW if channels <= NARROW and num_heads <= NARROW // HEAD else WIDE


def serve(dtype: torch.dtype, channels: int) -> bool:
    """Whether a block of so many channels has a kernel of its own."""
    return dtype in DTYPES and channels % 8 == 0 and channels <= WIDE


def taken(kernel: str, x: Tensor) -> bool:
    """Whether the table wants the one kernel for a block over the map x. C, for which calls are listed, always takes it."""
    if listed():
        return True
    least = _least_rows(kernel, tables.key(x.shape[3], dtype=x.dtype), x.device)
    return least == 1 or (least > 0 and x.numel() // x.shape[3] >= least)


@constant  # torch.compile cannot trace the tables
def _least_rows(kernel: str, key: str, device: torch.device) -> int:
    return tables.least_rows(kernel, key, tables.architecture(device), 1)


def operands(weight: Tensor, columns: int, depth: int) -> Tensor:
    """[N, K], filled up with zeros to [columns, depth] -> [columns / 8, depth / 32, 32, 8], as lanes need a right operand.

    Of 8 rows n and 32 columns k, lane 4 g + t has of row n + g the columns k + 2t, k + 2t + 1, and those 8, 16 and 24 further.
    """
    filled = F.pad(weight, (0, depth - weight.shape[1], 0, columns - weight.shape[0]))
    lanes = filled.reshape(columns // 8, 8, depth // 32, 4, 4, 2).permute(0, 2, 1, 4, 3, 5)
    return lanes.reshape(columns // 8, depth // 32, 32, 8).contiguous()


def plain(operands: Tensor, columns: int, depth: int) -> Tensor:
    """The [columns, depth] of `operands`."""
    of_eight, of_lanes = operands.shape[:2]
    lanes = operands.reshape(of_eight, of_lanes, 8, 4, 4, 2).permute(0, 2, 1, 4, 3, 5)
    return lanes.reshape(8 * of_eight, 32 * of_lanes)[:columns, :depth].contiguous()
