"""The global block in CUDA C++, as one kernel: csrc/cuda/global_block.cuh."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.backends.cuda import blocks
from hifuse_fast.backends.cuda.blocks import HEAD
from hifuse_fast.backends.cuda.launch import DTYPES, begins_aligned, launch
from hifuse_fast.backends.tape import kept
from hifuse_fast.ops.functions.window_attention import cuda as window_attention
from hifuse_fast.ops.prepared.base import PreparedOp

why_not = window_attention.why_not  # of all parts it asks the most
ROWS, KEYS = 4, 7  # tiles of 16 queries and of 8 keys, of a window


def whole(qkv: PreparedOp, attention: PreparedOp, output: PreparedOp) -> GlobalBlock | None:
    """The block of these prepared ops of the backend "cuda", its weights in the kernel's order; None where none serves it."""
    o, weight = attention.options, output.packed()["weight"]
    heads, window = o["num_heads"], o["window_size"]
    served = o["head_dim"] <= HEAD and heads * HEAD <= blocks.WIDE and window <= blocks.LARGEST_WINDOW
    if not served or not blocks.serve(weight.dtype, len(weight)):
        return None
    room, first, table = blocks.room(len(weight), heads), qkv.packed(), attention.packed()
    bias = first["bias"]
    tensors = {
        "qkv": blocks.operands(by_head(first["weight"], heads).flatten(0, 2), 3 * HEAD * heads, room),
        "qkv_bias": by_head(bias, heads).float(),
        "padding": by_head(table.get("qkv_bias", torch.zeros_like(bias)), heads).float(),
        "table": bias_of_accumulators(table["bias_table"], window),
        "weight": blocks.operands(filled_heads(weight.unflatten(1, (heads, -1)), 2).flatten(1), room, room),
        "bias": output.packed()["bias"].float(),
    }
    options = {name: o[name] for name in ("num_heads", "head_dim", "window_size", "shift_size", "scale")}
    return GlobalBlock(tensors, eps=qkv.options["eps"], **options)


class GlobalBlock(PreparedOp):
    """See `prepare_global_block`."""

    qkv: Tensor
    qkv_bias: Tensor  # [heads, 3, HEAD], float32, as the other vectors
    padding: Tensor
    table: Tensor
    weight: Tensor
    bias: Tensor

    def serves(self, x: Tensor) -> bool:
        """Whether it stands for its parts where the map is x."""
        return blocks.taken("global_block", x)

    @torch.no_grad()
    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        o, x = self.options, x.contiguous()
        out = torch.empty_like(x) if out is None else out
        if kept("global_block", x=x, **self.packed(), out=out, **o):
            return out
        into = out if begins_aligned(out) else torch.empty_like(out)
        sizes = (DTYPES[x.dtype], *x.shape[:3], o["num_heads"], o["head_dim"], o["window_size"], o["shift_size"])
        reads = (x, self.qkv, self.qkv_bias, self.padding, self.table, self.weight, self.bias)
        launch("global_block", sizes, (o["scale"], o["eps"]), reads, (into,))
        return out if into is out else out.copy_(into)


def by_head(rows: Tensor, heads: int) -> Tensor:
    """[3 C, ...], rows of q, k and v -> [heads, 3, HEAD, ...], filled up with zeros."""
    return filled_heads(rows.unflatten(0, (3, heads, -1)), 2).transpose(0, 1).contiguous()


def filled_heads(x: Tensor, dim: int) -> Tensor:
    """`x` with zeros up to HEAD channels of a head, which are dimension `dim`."""
    return F.pad(x, [0, 0] * (x.dim() - 1 - dim) + [0, HEAD - x.shape[dim]])


def bias_of_accumulators(table: Tensor, window: int) -> Tensor:
    """[(2 window - 1)^2, heads] -> [heads, ROWS, KEYS, 32, 4] in units of log2: those of a lane's accumulators side by side.

    Keys beyond the window have minus infinity, queries beyond it the bias of the last one.
    """
    tokens, device = window * window, table.device
    lane, pair = torch.arange(32, device=device)[:, None], torch.arange(4, device=device)
    rows = 16 * torch.arange(ROWS, device=device)[:, None, None, None] + lane // 4 + 8 * (pair // 2)
    keys = 8 * torch.arange(KEYS, device=device)[:, None, None] + lane % 4 * 2 + pair % 2
    query, key = rows.clamp(max=tokens - 1), keys.clamp(max=tokens - 1)

    def code(token: Tensor) -> Tensor:
        return token + token // window * (window - 1)

    bias = table[code(query) - code(key) + 2 * window * (window - 1)] * math.log2(math.e)
    return bias.masked_fill((keys >= tokens)[..., None], -math.inf).movedim(-1, 0).float().contiguous()
