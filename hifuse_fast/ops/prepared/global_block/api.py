"""The contract of the global block: docstring, and whether one kernel does what its parts do."""

from __future__ import annotations

import importlib

import torch
from torch import nn

from hifuse_fast.backends.select import backend_of_parts
from hifuse_fast.ops.prepared.base import PreparedOp


def backend_of_global_block(
    backend: str, *, num_heads: int, head_dim: int, window_size: int, device: torch.device, dtype: torch.dtype
) -> str:
    """The backend to prepare the parts of a block for, where `backend` was asked for: see `select.backend_of_parts`."""
    return backend_of_parts(
        "prepare_global_block", backend, key=(window_size, num_heads, head_dim), head_dim=head_dim, device=device, dtype=dtype
    )


def prepare_global_block(qkv: PreparedOp, attention: PreparedOp, output: PreparedOp) -> nn.Module:
    r"""A block of the global branch, made of prepared ops, each of which is packed, calibrated and saved by itself.

    .. math:: y = x + \mathrm{GELU}(W \, \mathrm{attention}(W_{qkv} \, \mathrm{norm}(x) + b_{qkv}) + b)

    The block is called as `block(x, maps)`: [B, H, W, C] -> [B, H, W, C]. It takes a map for its result from `maps`, and gives
    x back (`inference/buffers.py`). Where all parts are CUDA's, and its kernel serves their sizes, the block is one launch,
    over copies of their tensors in another order, from the number of pixels on that the table says. Else it is three calls,
    also while a part was replaced or has a hook.

    Args:
        qkv: of `prepare_linear`, over pixels, with norm="row".
        attention: of `prepare_window_attention`.
        output: of `prepare_linear`, over pixels, with activation="gelu".

    Source: the official HiFuse `Global_block`, whose linears `proj` and `fc1` are one here.
    """
    block: nn.Module = importlib.import_module(f"{__package__}.reference").GlobalBlock(
        qkv=qkv, attention=attention, output=output
    )
    if {part.backend for part in (qkv, attention, output)} == {"cuda"}:
        block.whole = importlib.import_module(f"{__package__}.cuda").whole(qkv, attention, output)
    return block
