"""HiFuse as a graph for other runtimes: the function of the network, in the layout of the official code.

The network's own maps are channels last, because our kernels want them so. Runtimes such as ONNX Runtime and OpenVINO lay out
convolutions themselves, and do that best for a graph whose maps are channels first. So here the local branch and the fusion
are channels first, the global branch is tokens, and layout changes only where the official code changes it.

Every size is computed once, as a multiple of ceil(H / 32) or ceil(W / 32): so sizes may be symbols, which nothing asks about.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hifuse_fast.blocks import GlobalBlock, HFFBlock, InvertedMLP, LocalBlock, PatchMerging, WindowAttention
from hifuse_fast.model import STRIDE, HiFuse, HiFuseFeatures
from hifuse_fast.ops.functions.window_attention.reference import merge, partition, position_bias, shift_mask


class OfficialLayout(nn.Module):
    """The forward of `model` in eval mode, without our ops. It holds the model, and reads its modules' weights and options.

    It takes images [B, in_chans, H, W] and returns the logits, the features where there is no classifier, or of a
    `HiFuseFeatures` the tuple of its maps. It calls none of the model's modules but the classifier: see `check_plain`.
    """

    def __init__(self, model: HiFuse) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        model, x = self.model, _pad(images, STRIDE, 2)
        global_maps = _global_branch(model, x)
        local_maps = _local_branch(model, x)
        fused_maps: list[Tensor] = []
        for block, local, tokens in zip((model.fu1, model.fu2, model.fu3, model.fu4), local_maps, global_maps, strict=True):
            fused_maps.append(_hff_block(block, local, tokens, fused_maps[-1] if fused_maps else None))
        if isinstance(model, HiFuseFeatures):
            return tuple(fused_maps[each["index"]] for each in model.feature_info.info)
        out: Tensor = model.conv_head(_layer_norm(model.conv_norm, fused_maps[-1].mean((2, 3))))
        return out


def _global_branch(model: HiFuse, x: Tensor) -> list[Tensor]:
    """The maps of the global stages, each [B, C, H, W]."""
    x = _layer_norm(model.patch_embed.norm, _conv(model.patch_embed.proj, x).permute(0, 2, 3, 1))
    maps = []
    block: Any
    for stage in (model.layers1, model.layers2, model.layers3, model.layers4):
        x = x if stage.downsample is None else _patch_merging(stage.downsample, x)
        for block in stage.blocks:
            x = _global_block(block, x)
        maps.append(x.permute(0, 3, 1, 2))
    return maps


def _local_branch(model: HiFuse, x: Tensor) -> list[Tensor]:
    """The maps of the local stages, each [B, C, H, W]."""
    maps = []
    downsample: Any
    blocks: Any
    for downsample, blocks in zip(model.downsample_layers, model.stages, strict=True):
        for layer in downsample:  # a convolution and a norm, in either order
            x = _conv(layer, x) if isinstance(layer, nn.Conv2d) else _layer_norm_first(layer, x)
        for block in blocks:
            x = _local_block(block, x)
        maps.append(x)
    return maps


def _global_block(block: GlobalBlock, x: Tensor) -> Tensor:
    """Tokens [B, H, W, C] -> the same."""
    return x + F.gelu(_linear(block.fc1, _window_attention(block.attn, _layer_norm(block.norm1, x))))


def _window_attention(attn: WindowAttention, x: Tensor) -> Tensor:
    """Tokens [B, H, W, C] -> the same. Padding comes before the qkv linear."""
    _, height, width, channels = x.shape
    m, shift = attn.window_size, attn.shift_size
    x = _linear(attn.qkv, _roll(_pad(x, m, 1), -shift))
    padded_height, padded_width = x.shape[1:3]
    q, k, v = partition(x, m, attn.num_heads)  # each [B, windows, heads, N, head_dim]
    scores = (q * (channels // attn.num_heads) ** -0.5) @ k.transpose(-2, -1)
    scores = scores + position_bias(attn.relative_position_bias_table, m)
    if shift:
        scores = scores + shift_mask(padded_height, padded_width, m, shift, x.device).to(scores.dtype)[:, None]
    x = _roll(merge(scores.softmax(-1) @ v, padded_height, padded_width, m), shift)
    return _linear(attn.proj, x[:, :height, :width])


def _patch_merging(merging: PatchMerging, x: Tensor) -> Tensor:
    """Tokens [B, H, W, C] -> [B, H / 2, W / 2, out_dim], for even sizes: column offsets are the outer ones."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    x = x.permute(0, 1, 3, 4, 2, 5).reshape(batch, height // 2, width // 2, 4 * channels)
    return _linear(merging.reduction, _layer_norm(merging.norm, x))


def _local_block(block: LocalBlock, x: Tensor) -> Tensor:
    y = _layer_norm(block.norm, _conv(block.dwconv, x).permute(0, 2, 3, 1))
    return x + F.gelu(_linear(block.pwconv, y)).permute(0, 3, 1, 2)


def _hff_block(block: HFFBlock, local_map: Tensor, global_map: Tensor, fused_map: Tensor | None) -> Tensor:
    w_l, w_g = _conv_norm(block.W_l, local_map), _conv_norm(block.W_g, global_map)
    if fused_map is None:
        w_f, norm, reduce, maps = None, block.norm2, block.W, [w_l, w_g]
    else:
        w_f = F.avg_pool2d(F.relu(_conv_norm(block.Updim, fused_map)), 2)
        norm, reduce, maps = block.norm1, block.W3, [w_f, w_l, w_g]
    x = F.gelu(_conv_norm(reduce, _layer_norm_first(norm, torch.cat(maps, 1))))
    pooled = torch.cat([local_map.amax(1, keepdim=True), local_map.mean(1, keepdim=True)], 1)
    local_map = local_map * _conv_norm(block.spatial, pooled).sigmoid()
    global_map = global_map * _channel_gate(block, global_map)
    mixed = _inverted_mlp(block.residual, _layer_norm_first(block.norm3, torch.cat([global_map, local_map, x], 1)))
    return mixed if w_f is None else w_f + mixed


def _channel_gate(block: HFFBlock, x: Tensor) -> Tensor:
    squeeze, _, excite = block.se
    pooled = (x.amax((2, 3), keepdim=True), x.mean((2, 3), keepdim=True))
    largest, mean = (_conv(excite, F.relu(_conv(squeeze, each))) for each in pooled)
    gate = (largest + mean).sigmoid()
    return gate.sigmoid() if block.channel_gate == "double_sigmoid" else gate


def _inverted_mlp(mlp: InvertedMLP, z: Tensor) -> Tensor:
    x = _batch_norm(mlp.bn1, z + F.gelu(_conv_norm(mlp.conv1, z)))
    return _conv_norm(mlp.conv3, F.gelu(_conv_norm(mlp.conv2, x)))


# What PyTorch's own modules compute, whose options and weights are read here: our subclasses of them take channels-last maps.
def _conv(conv: Any, x: Tensor) -> Tensor:
    return nn.Conv2d.forward(conv, x)


def _linear(linear: Any, x: Tensor) -> Tensor:
    return nn.Linear.forward(linear, x)


def _batch_norm(norm: Any, x: Tensor) -> Tensor:
    return nn.BatchNorm2d.forward(norm, x)


def _layer_norm(norm: Any, x: Tensor) -> Tensor:
    """Over the last axis."""
    return nn.LayerNorm.forward(norm, x)


def _layer_norm_first(norm: Any, x: Tensor) -> Tensor:
    """Over the channels of [B, C, H, W], as the official code spells it."""
    x = x - x.mean(1, keepdim=True)
    x = x / (x.square().mean(1, keepdim=True) + norm.eps).sqrt()
    if norm.weight is not None:
        x = x * norm.weight[:, None, None]
    return x if norm.bias is None else x + norm.bias[:, None, None]


def _conv_norm(module: Any, x: Tensor) -> Tensor:
    x = _conv(module.conv, x)
    return x if module.bn is None else _batch_norm(module.bn, x)


def _pad(x: Tensor, multiple: int, axis: int) -> Tensor:
    """Zero-pad the two axes from `axis` on at their ends, to multiples."""
    ends = [(length + multiple - 1) // multiple * multiple - length for length in x.shape[axis : axis + 2]]
    if all(isinstance(end, int) and end == 0 for end in ends):
        return x
    return F.pad(x, [0, 0] * (2 - axis) + [0, ends[1], 0, ends[0]])


def _roll(x: Tensor, shift: int) -> Tensor:
    return x.roll((shift, shift), (1, 2)) if shift else x
