"""Window attention in plain PyTorch: the definition every kernel is tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.ops.functions.padding import crop, pad_to_multiple

MASK_VALUE = -100.0  # additive, as the official code has it: not -inf


def window_attention(
    qkv: Tensor,
    bias_table: Tensor,
    *,
    num_heads: int,
    window_size: int,
    shift_size: int,
    qkv_bias: Tensor | None,
    scale: float,
    dropout_p: float = 0.0,
) -> Tensor:
    """See `hifuse_fast.ops.window_attention`; arguments are already validated and defaults filled in."""
    _, height, width, _ = qkv.shape
    x = pad_map(qkv, qkv_bias, window_size)
    if shift_size:
        x = x.roll((-shift_size, -shift_size), (1, 2))
    padded_height, padded_width = x.shape[1:3]

    q, k, v = partition(x, window_size, num_heads)  # each [B, windows, heads, N, head_dim]
    scores = (q * scale) @ k.transpose(-2, -1)
    scores = scores + position_bias(bias_table, window_size)
    if shift_size:
        mask = shift_mask(padded_height, padded_width, window_size, shift_size, qkv.device)
        scores = scores + mask.to(scores.dtype)[:, None]  # [windows, 1, N, N]
    weights = scores.softmax(-1)  # float32 where the table is, as in autocast
    if dropout_p:
        weights = F.dropout(weights, dropout_p)
    out = merge(weights.to(v.dtype) @ v, padded_height, padded_width, window_size)

    if shift_size:
        out = out.roll((shift_size, shift_size), (1, 2))
    return crop(out, height, width)


def pad_map(qkv: Tensor, qkv_bias: Tensor | None, window_size: int) -> Tensor:
    """Pad right and bottom to a multiple of the window. Padding comes before the qkv linear: a padded token is its bias."""
    padded = pad_to_multiple(qkv, window_size)
    if qkv_bias is None or padded is qkv:
        return padded
    # Not a concatenation: its parts are empty at some sizes, and a graph of dynamic sizes would be bound to that.
    rows, columns = (torch.arange(padded.size(i), device=qkv.device) < qkv.size(i) for i in (1, 2))
    return torch.where((rows[:, None] & columns)[..., None], padded, qkv_bias.to(qkv.dtype))


def partition(x: Tensor, window_size: int, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, H, W, 3C] -> q, k, v of [B, windows, heads, window_size^2, head_dim]."""
    batch, height, width, channels = x.shape
    m, rows, columns, head_dim = window_size, height // window_size, width // window_size, channels // (3 * num_heads)
    x = x.reshape(batch, rows, m, columns, m, 3, num_heads, head_dim)
    x = x.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, batch, rows * columns, num_heads, m * m, head_dim)
    q, k, v = x.unbind(0)
    return q, k, v


def merge(windows: Tensor, height: int, width: int, window_size: int) -> Tensor:
    """[B, windows, heads, window_size^2, head_dim] -> [B, H, W, C]."""
    batch, _, num_heads, _, head_dim = windows.shape
    m = window_size
    x = windows.reshape(batch, height // m, width // m, num_heads, m, m, head_dim)
    return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, num_heads * head_dim)


def relative_position_index(window_size: int, device: torch.device | None = None) -> Tensor:
    """[N, N] row of the bias table for (query, key): (dy + M - 1) * (2M - 1) + dx + M - 1, with d = query - key."""
    y = torch.arange(window_size, device=device).repeat_interleave(window_size)
    x = torch.arange(window_size, device=device).repeat(window_size)
    dy, dx = y[:, None] - y[None], x[:, None] - x[None]
    return (dy + window_size - 1) * (2 * window_size - 1) + dx + window_size - 1


def position_bias(bias_table: Tensor, window_size: int) -> Tensor:
    """[(2M-1)^2, heads] -> [heads, N, N]."""
    index = relative_position_index(window_size, bias_table.device)
    return bias_table[index.flatten()].reshape(*index.shape, -1).permute(2, 0, 1)


def shift_mask(height: int, width: int, window_size: int, shift_size: int, device: torch.device) -> Tensor:
    """[windows, N, N]: MASK_VALUE where query and key, neighbours only through the cyclic shift, are of different regions."""

    def region(length: int) -> Tensor:  # slices (0, -M) (-M, -shift) (-shift, end) of the shifted, padded axis
        at = torch.arange(length, device=device)
        return (at >= length - window_size).long() + (at >= length - shift_size).long()

    m = window_size
    regions = 3 * region(height)[:, None] + region(width)[None]
    regions = regions.reshape(height // m, m, width // m, m).transpose(1, 2).reshape(-1, m * m)
    same = regions[:, :, None] == regions[:, None]
    return torch.where(same, 0.0, MASK_VALUE)
