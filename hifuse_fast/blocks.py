"""The blocks of HiFuse, each usable alone. Every map is channels last, [B, H, W, C]. A block has one floating dtype.

Parameter names are the official ones, so that a block of an official checkpoint loads into the block here. BN is batch
normalisation (eps 1e-5), LN is layer normalisation over the channels, GELU is the exact one, with erf.

A child that is not as the block made it (replaced, hooked, parametrised, wrapped) is called as a module, and the rest stays
fused. Hooks on a child get [B, H, W, C]. `hifuse_fast.layers.call` says which layout a replaced child gets.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hifuse_fast import ops
from hifuse_fast.backends import transforms
from hifuse_fast.checks import check_choice, check_count, check_flag, check_heads, check_map, check_rate
from hifuse_fast.layers import (
    BatchNorm2d,
    Conv2d,
    ConvNorm,
    DropPath,
    Sequential,
    affine,
    batch_norm,
    call,
    concat_norm,
    conv_norm,
    draw_normal,
    is_plain,
    is_plain_conv,
    is_plain_norm,
    linear,
    refuse_scripts,
    remember_forward,
)
from hifuse_fast.ops.functions.padding import crop, pad_to_multiple
from hifuse_fast.ops.functions.window_attention.api import MAX_WINDOW_SIZE
from hifuse_fast.ops.functions.window_attention.reference import relative_position_index

CHANNEL_GATES = ("sigmoid", "double_sigmoid")
MIXERS = ("dense", "depthwise")
EXPANSION = 4  # hidden width of the inverted MLP over its input's
SQUEEZE = 16  # reduction of the squeeze-excite


class WindowAttention(nn.Module):
    r"""Multi-head self-attention in (shifted) windows of a map, with relative position bias.

    .. math:: y = W_p \, \mathrm{window\_attention}(W_q x + b_q) + b_p

    with the attention of `hifuse_fast.ops.window_attention`. [B, H, W, dim] -> [B, H, W, dim] for any H, W >= 1.

    Args:
        dim: channels.
        num_heads: divides `dim`.
        window_size: side of a window, 1 to 16.
        shift_size: cyclic shift, 0 <= shift_size < window_size.
        qkv_bias: whether the qkv linear has a bias.
        attn_drop: dropout of the attention weights.
        proj_drop: dropout of the output.

    Raises:
        TypeError, ValueError: an argument or a map that does not fit, named in the message.

    Source: Liu et al. 2021 (Swin), section 3.2.
    """

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int = 7,
        shift_size: int = 0,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim = check_count("dim", dim)
        self.num_heads = check_count("num_heads", num_heads)
        check_heads("num_heads", self.num_heads, self.dim)
        self.window_size = check_window_size(window_size)
        self.shift_size = check_count("shift_size", shift_size, least=0)
        if self.shift_size >= self.window_size:
            raise ValueError(f"shift_size must be below window_size = {window_size}, got {shift_size}")
        self.attn_drop = check_rate("attn_drop", attn_drop)

        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        # The op needs no index; official checkpoints hold one. On meta its arithmetic would import torch._dynamo, for seconds.
        index = relative_position_index(window_size, torch.device("cpu")).to(self.relative_position_bias_table.device)
        self.register_buffer("relative_position_index", index)
        self.qkv = nn.Linear(dim, 3 * dim, bias=check_flag("qkv_bias", qkv_bias))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(check_rate("proj_drop", proj_drop))
        draw_normal(self.relative_position_bias_table, 0.02)

    def forward(self, x: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
        """The attention of x, or of norm(x)."""
        check_map("x", x, self.dim)
        plain, given = is_plain(self.qkv, nn.Linear) and not transforms.foreign(), x
        if not plain:  # what it gives for the padding is not known, so the padding is given to it, as in the official network
            x, norm = pad_to_multiple(x if norm is None else norm(x), self.window_size), None
        x = ops.window_attention(
            linear(self.qkv, x, norm),
            self.relative_position_bias_table,
            num_heads=self.num_heads,
            window_size=self.window_size,
            shift_size=self.shift_size,
            qkv_bias=self.qkv.bias if plain else None,
            dropout_p=self.attn_drop if self.training else 0.0,
        )
        x = x if plain else crop(x, given.size(1), given.size(2))
        out: Tensor = self.proj_drop(linear(self.proj, x))
        return out


class GlobalBlock(nn.Module):
    r"""Block of the global branch: window attention, then one linear, in a residual.

    .. math:: y = x + \mathrm{GELU}(W \, \mathrm{WindowAttention}(\mathrm{LN}(x)) + b)

    [B, H, W, dim] -> [B, H, W, dim]. Nothing uses the parameter `norm2`; it is there because official checkpoints hold it.

    Args:
        dim, num_heads, window_size, shift_size, qkv_bias, attn_drop: see `WindowAttention`.
        drop: dropout of the attention's output.
        drop_path: stochastic depth.

    Source: Huo et al. 2024 (HiFuse), figure 3.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int = 7,
        shift_size: int = 0,
        qkv_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim = check_count("dim", dim)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(
            dim,
            num_heads,
            window_size=window_size,
            shift_size=shift_size,
            qkv_bias=qkv_bias,
            attn_drop=attn_drop,
            proj_drop=drop,
        )
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        check_map("x", x, self.dim)
        mixed = self.attn(x, self.norm1) if is_plain(self.attn, WindowAttention) else self.attn(self.norm1(x))
        return _add_gelu_linear(x, mixed, self.fc1, self.drop_path)


class LocalBlock(nn.Module):
    r"""Block of the local branch: depthwise 3x3 convolution, then one linear, in a residual.

    .. math:: y = x + \mathrm{GELU}(W \, \mathrm{LN}(\mathrm{dwconv}_{3 \times 3}(x)) + b)

    [B, H, W, dim] -> [B, H, W, dim]. `drop_path` is the rate of stochastic depth.

    Source: Huo et al. 2024 (HiFuse), figure 3.
    """

    def __init__(self, dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.dim = check_count("dim", dim)
        self.dwconv = Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv = nn.Linear(dim, dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        check_map("x", x, self.dim)
        conv, norm = self.dwconv, self.norm
        if is_plain_norm(norm, self.dim) and is_plain_conv(conv, 3, groups=(self.dim,), bias=True):
            bias = x.new_zeros(self.dim) if conv.bias is None else conv.bias
            mixed = ops.depthwise_norm(x, conv.weight, bias, *affine(norm, self.dim, x), eps=norm.eps)
        else:
            mixed = norm(call(conv, x))
        return _add_gelu_linear(x, mixed, self.pwconv, self.drop_path)


class PatchMerging(nn.Module):
    r"""Halve the map: each 2x2 patch becomes one token.

    .. math:: y = W \, \mathrm{LN}([x_{00}, x_{10}, x_{01}, x_{11}])

    with x_rc the token of row offset r and column offset c. [B, H, W, dim] -> [B, ceil(H / 2), ceil(W / 2), out_dim]; an odd
    map is zero-padded at the right or the bottom. `out_dim` is 2 * dim unless given.

    Source: Liu et al. 2021 (Swin), section 3.1.
    """

    def __init__(self, dim: int, out_dim: int | None = None) -> None:
        super().__init__()
        self.dim = check_count("dim", dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim if out_dim is None else check_count("out_dim", out_dim), bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        check_map("x", x, self.dim)
        return linear(self.reduction, x, self.norm, rows="patches")


class InvertedMLP(nn.Module):
    r"""The inverted residual MLP at the end of the fusion. Most of the network's arithmetic is here.

    .. math::
        u = z + \mathrm{GELU}(\mathrm{conv}_{3 \times 3}(z)), \qquad
        y = \mathrm{BN}_3(W_3 \, \mathrm{GELU}(W_2 \, \mathrm{BN}_1(u)))

    [B, H, W, dim] -> [B, H, W, out_dim], hidden width 4 * dim, no biases.

    Args:
        dim: channels of the input.
        out_dim: channels of the output.
        mixer: "dense", a full 3x3 convolution as in the official code and checkpoints, or "depthwise", as in the paper.

    Source: Huo et al. 2024 (HiFuse), equation of the IRMLP.
    """

    channels_last = True

    def __init__(self, dim: int, out_dim: int, mixer: str = "dense") -> None:
        super().__init__()
        self.dim = check_count("dim", dim)
        hidden_dim = EXPANSION * dim
        groups = dim if check_choice("mixer", mixer, MIXERS) == "depthwise" else 1
        self.conv1 = ConvNorm(dim, dim, 3, bias=False, norm=False, groups=groups)
        self.conv2 = ConvNorm(dim, hidden_dim, 1, bias=False, norm=False)
        self.conv3 = ConvNorm(hidden_dim, check_count("out_dim", out_dim), 1, bias=False)
        self.bn1 = BatchNorm2d(dim)

    def forward(self, z: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """The MLP of z, or shortcut + that."""
        check_map("z", z, self.dim)
        mixed = batch_norm(self.bn1, self._mix(z))
        convs = self.conv2, self.conv3
        usual = all(is_plain(each, ConvNorm) and is_plain_conv(each.conv, 1, groups=(1,)) for each in convs)
        if usual and self.conv2.bn is None:
            expand, project = (each.conv.weight.flatten(1) for each in convs)
            return batch_norm(self.conv3.bn, ops.mlp(mixed, expand, project), residual=shortcut)
        return conv_norm(self.conv3, F.gelu(conv_norm(self.conv2, mixed)), residual=shortcut)

    def _mix(self, z: Tensor) -> Tensor:
        conv = self.conv1
        if is_plain(conv, ConvNorm) and conv.bn is None and is_plain_conv(conv.conv, 3, groups=(1, self.dim)):
            return ops.mixer(z, conv.conv.weight)
        return z + F.gelu(conv_norm(conv, z))


class HFFBlock(nn.Module):
    r"""Hierarchical feature fusion: of the local map l, the global map g, and the fused map f of the previous stage.

    .. math::
        w_f &= \mathrm{avgpool}_2(\mathrm{ReLU}(\mathrm{BN}(W_u f))), \quad
        x = \mathrm{GELU}(\mathrm{BN}(W \, \mathrm{LN}([w_f, \mathrm{BN}(W_l l), \mathrm{BN}(W_g g)]))) \\
        l' &= l \cdot \sigma(\mathrm{BN}(\mathrm{conv}_{7 \times 7}([\max_c l, \mathrm{mean}_c l]))), \quad
        g' = g \cdot \sigma(\mathrm{se}(\max_{hw} g) + \mathrm{se}(\mathrm{mean}_{hw} g)) \\
        y &= w_f + \mathrm{InvertedMLP}(\mathrm{LN}([g', l', x]))

    with se(a) = W_2 ReLU(W_1 a), C -> C / 16 -> C. Without f (the first stage) the terms in w_f are absent. l and g are
    [B, H, W, dim], f is [B, 2H, 2W, fused_dim] or None; returns [B, H, W, dim].

    Official checkpoints hold the parameters of both forms in every block. Without f, `Updim`, `norm1` and `W3` go unused;
    with f, `norm2` and `W` do.

    Args:
        dim: channels of l, g and the result.
        fused_dim: channels of f; dim // 2 unless given.
        channel_gate: "sigmoid", or "double_sigmoid" for checkpoints of the official code from before 2024-01-16. The gate of g
            was sigma(sigma(.)) there.
        mixer: see `InvertedMLP`.
        drop_path: stochastic depth of the inverted MLP.

    Source: Huo et al. 2024 (HiFuse), section 3.3; the official code where the two differ.
    """

    def __init__(
        self,
        dim: int,
        fused_dim: int | None = None,
        channel_gate: str = "sigmoid",
        mixer: str = "dense",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim = check_count("dim", dim)
        self.fused_dim = max(1, dim // 2) if fused_dim is None else check_count("fused_dim", fused_dim)
        self.channel_gate = check_choice("channel_gate", channel_gate, CHANNEL_GATES)
        squeezed_dim = max(1, dim // SQUEEZE)
        self.se = Sequential(
            Conv2d(dim, squeezed_dim, 1, bias=False),
            nn.ReLU(),
            Conv2d(squeezed_dim, dim, 1, bias=False),
        )
        self.spatial = ConvNorm(2, 1, 7, bias=False)
        self.W_l = ConvNorm(dim, dim, 1)
        self.W_g = ConvNorm(dim, dim, 1)
        self.Updim = ConvNorm(self.fused_dim, dim, 1)
        self.norm1 = nn.LayerNorm(3 * dim, eps=1e-6)
        self.norm2 = nn.LayerNorm(2 * dim, eps=1e-6)
        self.norm3 = nn.LayerNorm(3 * dim, eps=1e-6)
        self.W3 = ConvNorm(3 * dim, dim, 1)
        self.W = ConvNorm(2 * dim, dim, 1)
        self.residual = InvertedMLP(3 * dim, dim, mixer)
        self.drop_path = DropPath(drop_path)

    def forward(self, local_map: Tensor, global_map: Tensor, fused_map: Tensor | None = None) -> Tensor:
        self._check(local_map, global_map, fused_map)
        w_l, w_g = conv_norm(self.W_l, local_map), conv_norm(self.W_g, global_map)
        if fused_map is None:
            w_f, norm, reduce, maps = None, self.norm2, self.W, [w_l, w_g]
        else:
            w_f = conv_norm(self.Updim, fused_map, activation="relu", pool=True)
            norm, reduce, maps = self.norm1, self.W3, [w_f, w_l, w_g]
        x = conv_norm(reduce, concat_norm(norm, maps), activation="gelu")
        gates = [self._channel_gate(global_map), self._spatial_gate(local_map), None]
        z = concat_norm(self.norm3, [global_map, local_map, x], gates)
        path, residual = self.drop_path, self.residual
        if w_f is not None and is_plain(residual, InvertedMLP) and is_plain(path, DropPath) and not path.active:
            out: Tensor = residual(z, w_f)
            return out
        out = path(call(residual, z))
        return out if w_f is None else w_f + out

    def _spatial_gate(self, x: Tensor) -> Tensor:
        return conv_norm(self.spatial, ops.max_mean(x, over="channels"), activation="sigmoid")  # [B, H, W, 1]

    def _channel_gate(self, x: Tensor) -> Tensor:
        both = ops.max_mean(x, over="pixels")  # [B, 2, 1, C]
        as_made = (
            is_plain(self.se, Sequential)
            and all(is_plain_conv(each, 1, groups=(1,)) or is_plain(each, nn.ReLU) for each in self.se)
            and not transforms.foreign()
        )
        if as_made:
            scores = call(self.se, both).sum(1, keepdim=True)
        else:  # as in the official network, one after the other: a norm or a pooling that a user put there sees one of the two
            largest, mean = both.split(1, 1)
            scores = call(self.se, largest) + call(self.se, mean)
        gate: Tensor = scores.sigmoid()
        return gate.sigmoid() if self.channel_gate == "double_sigmoid" else gate  # [B, 1, 1, C]

    def _check(self, local_map: Tensor, global_map: Tensor, fused_map: Tensor | None) -> None:
        check_map("local_map", local_map, self.dim)
        check_map("global_map", global_map, self.dim)
        if local_map.shape != global_map.shape:
            raise ValueError(f"global_map must be {list(local_map.shape)} like local_map, got {list(global_map.shape)}")
        if fused_map is not None:
            check_map("fused_map", fused_map, self.fused_dim)
            batch, height, width, _ = local_map.shape
            expected = [batch, 2 * height, 2 * width, self.fused_dim]
            if list(fused_map.shape) != expected:
                raise ValueError(f"fused_map must be {expected}, twice local_map's size, got {list(fused_map.shape)}")


remember_forward(WindowAttention, GlobalBlock, LocalBlock, PatchMerging, InvertedMLP, HFFBlock)
refuse_scripts(WindowAttention, GlobalBlock, LocalBlock, PatchMerging, InvertedMLP, HFFBlock)


def check_window_size(window_size: int) -> int:
    """`window_size` if attention can serve it."""
    if check_count("window_size", window_size) > MAX_WINDOW_SIZE:
        raise ValueError(f"window_size must be from 1 to {MAX_WINDOW_SIZE}, got {window_size}")
    return window_size


def _add_gelu_linear(x: Tensor, branch: Tensor, child: nn.Linear, drop_path: DropPath) -> Tensor:
    """x + drop_path(GELU(child(branch))), in one op where no path is dropped."""
    if is_plain(child, nn.Linear) and is_plain(drop_path, DropPath) and not drop_path.active:
        return ops.linear(branch, child.weight, child.bias, activation="gelu", residual=x)
    out: Tensor = x + drop_path(linear(child, branch, activation="gelu"))
    return out
