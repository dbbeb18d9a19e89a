"""The blocks alone: against their equations written another way, their options, their errors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hifuse_fast
from hifuse_fast import GlobalBlock, HFFBlock, InvertedMLP, LocalBlock, PatchMerging, WindowAttention
from hifuse_fast.layers import BatchNorm2d, DropPath
from hifuse_fast.testing import assert_within_rule, golden_uniform, golden_weights


@pytest.fixture(autouse=True)
def plain_pytorch() -> Any:
    with hifuse_fast.use_backend("reference"):
        yield


def golden_block(block: nn.Module) -> Any:
    block = block.double()
    golden_weights(block)
    return block.eval()


def a_map(*shape: int, name: str = "map") -> Tensor:
    return 2 * golden_uniform(name, shape) - 1


def conv_bn(conv_norm: Any, x: Tensor) -> Tensor:
    """BN(conv(x)) in eval mode, channels first, from the formula."""
    conv, bn = conv_norm.conv, conv_norm.bn
    x = F.conv2d(x, conv.weight, conv.bias, padding=conv.kernel_size[0] // 2)
    centred = (x - bn.running_mean[:, None, None]) / (bn.running_var + bn.eps).sqrt()[:, None, None]
    return centred * bn.weight[:, None, None] + bn.bias[:, None, None]


def norm_channels(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """LN over the channels of a channels-first map, from the formula."""
    mean = x.mean(1, keepdim=True)
    var = (x - mean).pow(2).mean(1, keepdim=True)
    return (x - mean) / (var + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def test_local_block_is_its_equation() -> None:
    block = golden_block(LocalBlock(12))
    x = a_map(2, 5, 6, 12)
    mixed = F.conv2d(x.permute(0, 3, 1, 2), block.dwconv.weight, block.dwconv.bias, padding=1, groups=12)
    normed = norm_channels(block.norm, mixed)
    linear = torch.einsum("oi,bihw->bohw", block.pwconv.weight, normed) + block.pwconv.bias[:, None, None]
    torch.testing.assert_close(block(x), x + F.gelu(linear).permute(0, 2, 3, 1))


@pytest.mark.parametrize("shift_size", [0, 2])
def test_global_block_is_its_equation(shift_size: int) -> None:
    block = golden_block(GlobalBlock(24, 3, window_size=5, shift_size=shift_size))
    x = a_map(2, 7, 11, 24)
    attn = block.attn
    qkv = F.linear(F.layer_norm(x, (24,), block.norm1.weight, block.norm1.bias, 1e-5), attn.qkv.weight, attn.qkv.bias)
    attended = hifuse_fast.ops.window_attention(
        qkv, attn.relative_position_bias_table, num_heads=3, window_size=5, shift_size=shift_size, qkv_bias=attn.qkv.bias
    )
    folded = F.linear(attended, block.fc1.weight @ attn.proj.weight, block.fc1.weight @ attn.proj.bias + block.fc1.bias)
    torch.testing.assert_close(block(x), x + F.gelu(folded))


def test_attention_shorter_than_a_window_stays_finite_and_keeps_its_size() -> None:
    assert torch.isfinite(golden_block(WindowAttention(16, 2, shift_size=3))(a_map(1, 1, 3, 16))).all()


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 7)])
def test_patch_merging_gathers_column_by_column(height: int, width: int) -> None:
    block = golden_block(PatchMerging(6, 10))
    x = a_map(2, height, width, 6)
    padded = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
    patches = [padded[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
    expected = F.linear(F.layer_norm(torch.cat(patches, -1), (24,), block.norm.weight, block.norm.bias), block.reduction.weight)
    actual = block(x)
    assert actual.shape == (2, -(-height // 2), -(-width // 2), 10)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(("mixer", "groups"), [("dense", 1), ("depthwise", 12)])
def test_inverted_mlp_is_its_equation(mixer: str, groups: int) -> None:
    block = golden_block(InvertedMLP(12, 5, mixer))
    z = a_map(2, 4, 3, 12)
    first = z.permute(0, 3, 1, 2)
    assert block.conv1.conv.weight.shape == (12, 12 // groups, 3, 3)
    mixed = first + F.gelu(F.conv2d(first, block.conv1.conv.weight, padding=1, groups=groups))
    bn = block.bn1
    mixed = F.batch_norm(mixed, bn.running_mean, bn.running_var, bn.weight, bn.bias)
    expected = conv_bn(block.conv3, F.gelu(F.conv2d(mixed, block.conv2.conv.weight)))
    torch.testing.assert_close(block(z), expected.permute(0, 2, 3, 1))


@pytest.mark.parametrize("channel_gate", ["sigmoid", "double_sigmoid"])
@pytest.mark.parametrize("first", [True, False])
def test_hff_block_is_its_equation(channel_gate: str, first: bool) -> None:
    block = golden_block(HFFBlock(32, fused_dim=20, channel_gate=channel_gate))
    maps = [a_map(2, 4, 6, 32, name="l"), a_map(2, 4, 6, 32, name="g")] + ([] if first else [a_map(2, 8, 12, 20, name="f")])
    local_map, global_map, *fused_map = (x.permute(0, 3, 1, 2) for x in maps)

    parts = [conv_bn(block.W_l, local_map), conv_bn(block.W_g, global_map)]
    shortcut = torch.zeros(())
    if fused_map:
        shortcut = F.avg_pool2d(F.relu(conv_bn(block.Updim, fused_map[0])), 2)
        parts = [shortcut, *parts]
    norm, linear = (block.norm2, block.W) if first else (block.norm1, block.W3)
    x = F.gelu(conv_bn(linear, norm_channels(norm, torch.cat(parts, 1))))
    statistics = torch.cat([local_map.amax(1, keepdim=True), local_map.mean(1, keepdim=True)], 1)
    gated_local = local_map * conv_bn(block.spatial, statistics).sigmoid()
    down, up = block.se[0].weight[:, :, 0, 0], block.se[2].weight[:, :, 0, 0]
    assert down.shape == (2, 32)
    gate = sum(F.linear(F.relu(F.linear(v, down)), up) for v in (global_map.amax((2, 3)), global_map.mean((2, 3)))).sigmoid()
    gate = gate.sigmoid() if channel_gate == "double_sigmoid" else gate
    fused = torch.cat([global_map * gate[:, :, None, None], gated_local, x], 1)
    expected = shortcut + block.residual(norm_channels(block.norm3, fused).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(block(*maps), expected.permute(0, 2, 3, 1))


def test_hff_block_by_itself_takes_half_its_width_from_the_stage_before() -> None:
    block = HFFBlock(8)
    assert block.Updim.conv.in_channels == 4
    assert block.se[0].out_channels == 1  # never none


def test_batch_norm_in_training_is_as_exact_as_pytorch_channels_first() -> None:
    x = a_map(8, 56, 56, 24).float() * 0.3 + 1
    norm = BatchNorm2d(24)
    exact = copy.deepcopy(norm).double()(x.double())
    plain = nn.BatchNorm2d(24)(x.permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1)
    assert_within_rule(norm(x), plain, exact)


def test_drop_path_keeps_or_drops_whole_images_and_their_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 2, 1)
    out = drop(x)
    images = out.flatten(1)
    assert (images == images[:, :1]).all()
    assert set(images[:, 0].tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(images.mean().item() - 1) < 0.05
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: WindowAttention(10, 3), "num_heads"),
        (lambda: WindowAttention(0, 1), "dim"),
        (lambda: WindowAttention(8, 2.0), "num_heads"),  # type: ignore[arg-type]
        (lambda: WindowAttention(8, 2, window_size=17), "window_size"),
        (lambda: WindowAttention(8, 2, shift_size=7), "shift_size"),
        (lambda: WindowAttention(8, 2, attn_drop=1.5), "attn_drop"),
        (lambda: GlobalBlock(8, 2, drop_path=float("nan")), "rate"),
        (lambda: GlobalBlock(8, 2, qkv_bias=1), "qkv_bias"),  # type: ignore[arg-type]
        (lambda: LocalBlock(True), "dim"),
        (lambda: PatchMerging(4, 0), "out_dim"),
        (lambda: InvertedMLP(4, 4, "sparse"), "mixer"),
        (lambda: HFFBlock(4, channel_gate="tanh"), "channel_gate"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(make: Any, name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{name} must"):
        make()


@pytest.mark.parametrize("block", [WindowAttention(8, 2), GlobalBlock(8, 2), LocalBlock(8), PatchMerging(8), InvertedMLP(8, 4)])
def test_a_map_that_does_not_fit_is_named(block: nn.Module) -> None:
    for bad in (torch.zeros(2, 4, 8), torch.zeros(1, 8, 4, 4), torch.zeros(1, 0, 4, 8)):
        with pytest.raises(ValueError, match=r"^. must be \[B, H, W, 8\]"):
            block(bad)
    with pytest.raises(TypeError, match="floating-point"):
        block(torch.zeros(1, 4, 4, 8, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"torch\.Tensor"):
        block([1])


def test_hff_maps_that_do_not_belong_together_are_named() -> None:
    block = HFFBlock(8)
    x = torch.zeros(1, 4, 4, 8)
    with pytest.raises(ValueError, match=r"^global_map must be"):
        block(x, torch.zeros(1, 4, 5, 8))
    with pytest.raises(ValueError, match=r"^fused_map must be"):
        block(x, x, torch.zeros(1, 4, 4, 4))
