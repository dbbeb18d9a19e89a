"""HiFuse: the network, its sizes, and how to make one.

One network serves as the definition and as the product: under `use_backend("reference")` it is operation for operation the
official one in plain PyTorch, under "auto" the same modules run the fused ops.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from hifuse_fast.backends.tracing import trace_for_every_size
from hifuse_fast.blocks import GlobalBlock, HFFBlock, LocalBlock, PatchMerging
from hifuse_fast.checks import check_choice, check_count, check_flag, check_images
from hifuse_fast.layers import Conv2d, LayerNorm, Sequential, call, draw_normal, is_plain, refuse_scripts, remember_forward
from hifuse_fast.ops.functions.padding import pad_to_multiple
from hifuse_fast.options import STAGES, HiFuseOptions
from hifuse_fast.recompute import run

STRIDE = 32  # of the last stage; images are padded to a multiple of it
REDUCTIONS = (4, 8, 16, 32)  # image size over map size, stage by stage
_HEADS = ("conv_head.", "head.")


class StageMaps(NamedTuple):
    """The outputs of the four stages of the three branches, each [B, C, H, W] (views of channels-last memory)."""

    local_maps: list[Tensor]
    global_maps: list[Tensor]
    fused_maps: list[Tensor]


class GlobalStage(nn.Module):
    """Patch merging (from stage 2 on), then `depth` global blocks, every other one shifted by half a window."""

    def __init__(
        self, in_dim: int | None, dim: int, *, num_heads: int, window_size: int, drop_path: Sequence[float], **options: Any
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            GlobalBlock(
                dim,
                num_heads,
                window_size=window_size,
                shift_size=(i % 2) * (window_size // 2),
                drop_path=rate,
                **options,
            )
            for i, rate in enumerate(drop_path)
        )
        self.downsample = None if in_dim is None else PatchMerging(in_dim, dim)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.downsample is None else self.downsample(x)
        for block in self.blocks:
            x = run(block, x, checkpointing=self.grad_checkpointing)
        return x


class LocalStage(nn.Sequential):
    """Local blocks, [B, H, W, C] -> [B, H, W, C]."""

    grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = run(block, x, checkpointing=self.grad_checkpointing)
        return x


class PatchEmbed(nn.Module):
    """LN(conv(x)): each 4x4 patch of the image becomes a token. [B, H, W, in_chans] -> [B, H / 4, W / 4, dim]."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = Conv2d(in_chans, dim, kernel_size=4, stride=4)
        self.norm = LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return call(self.norm, call(self.proj, x))


class HiFuse(nn.Module):
    r"""The three-branch network: a local branch of convolutions, a global one of shifted windows, and their fusion.

    .. math::
        l_i &= \mathrm{LocalBlocks}_i(\mathrm{down}(l_{i-1})), \quad g_i = \mathrm{GlobalBlocks}_i(\mathrm{merge}(g_{i-1})), \\
        f_i &= \mathrm{HFF}_i(l_i, g_i, f_{i-1}), \quad y = W \, \mathrm{LN}(\mathrm{mean}_{hw} f_4) + b

    for stages i = 1..4 at 1/4, 1/8, 1/16, 1/32 of the image. The state_dict has the official keys, shapes and order; a few of
    its tensors nothing uses (the model's `norm` and `head`, and those named in `GlobalBlock` and `HFFBlock`). So
    DistributedDataParallel needs `find_unused_parameters=True`, or that these tensors ask for no gradient
    (`requires_grad_(False)`), as `hifuse-fast train` does. With the same seed, the initial weights are the official ones.

    Args:
        num_classes, options: the fields of `HiFuseOptions`, which the network keeps as `options`.

    Its `record` is what its checkpoint says of it besides: names of classes, how images are prepared, and more, see
    `save_checkpoint`. It is empty where no checkpoint says anything, and a frozen network keeps it.

    Raises:
        TypeError, ValueError: an option that does not fit, named in the message.

    Source: Huo et al., Biomedical Signal Processing and Control 87 (2024) 105534, arXiv 2209.10218, and its official code.
    """

    layers1: GlobalStage
    layers2: GlobalStage
    layers3: GlobalStage
    layers4: GlobalStage
    fu1: HFFBlock
    fu2: HFFBlock
    fu3: HFFBlock
    fu4: HFFBlock

    def __init__(self, num_classes: int = 1000, **options: Any) -> None:
        super().__init__()
        o = self.options = HiFuseOptions(num_classes, **options)
        self.record: dict[str, Any] = {}
        dims, in_dims, in_chans, dim = o.dims, (None, *o.dims[:-1]), o.in_chans, o.dims[-1]
        attention: dict[str, Any] = {
            "qkv_bias": o.qkv_bias,
            "drop": o.drop_rate,
            "attn_drop": o.attn_drop_rate,
            "window_size": o.window_size,
        }
        global_rates = _rising_rates(o.drop_path_rate, o.depths)
        local_rates = _rising_rates(o.conv_drop_path_rate, o.conv_depths)

        # The order of construction is the official one: it is the order of the state_dict and of the random draws.
        self.downsample_layers = nn.ModuleList(
            [Sequential(Conv2d(in_chans, dims[0], kernel_size=4, stride=4), LayerNorm(dims[0], eps=1e-6))]
            + [
                Sequential(LayerNorm(dims[i], eps=1e-6), Conv2d(dims[i], dims[i + 1], kernel_size=2, stride=2))
                for i in range(STAGES - 1)
            ]
        )
        self.stages = nn.ModuleList(
            LocalStage(*[LocalBlock(width, rate) for rate in rates]) for width, rates in zip(dims, local_rates, strict=True)
        )
        self.conv_norm = nn.LayerNorm(dim, eps=1e-6)
        self.conv_head = _classifier(dim, num_classes)
        self.patch_embed = PatchEmbed(in_chans, dims[0])
        self.pos_drop = nn.Dropout(o.drop_rate)
        for i in range(STAGES):
            stage = GlobalStage(in_dims[i], dims[i], num_heads=o.num_heads[i], drop_path=global_rates[i], **attention)
            self.add_module(f"layers{i + 1}", stage)
        self.norm = nn.LayerNorm(dim)
        self.head = _classifier(dim, num_classes)
        for module in self.modules():  # and not the fusion, which keeps PyTorch's defaults
            _init_weights(module)
        for i in range(STAGES):
            self.add_module(f"fu{i + 1}", HFFBlock(dims[i], in_dims[i], o.channel_gate, o.mixer, o.hff_drop_path_rate))

        self.grad_checkpointing = False
        #: The official names and shapes of the weights: what tells whether a module was changed since.
        self.weight_shapes = {name: tensor.shape for name, tensor in self.state_dict().items()}

    @property
    def num_classes(self) -> int:
        """Length of the logits, 0 where there is no classifier."""
        return self.options.num_classes

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return self.options.in_chans

    @property
    def dims(self) -> Sequence[int]:
        """Widths of the four stages."""
        return self.options.dims

    @property
    def num_features(self) -> int:
        """Width of the last stage."""
        return self.options.dims[-1]

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes] of images [B, in_chans, H, W]; with num_classes=0 the features [B, C4].

        Any H, W >= 1: a size that is no multiple of 32 is zero-padded at the right and the bottom to the next one. Floating
        images of the weights' dtype and device (any floating dtype under autocast). Batch 0 gives an empty result in eval mode.

        Raises:
            TypeError, ValueError: images that do not fit, said in the message.
        """
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """The last fused map, [B, C4, ceil(H / 32), ceil(W / 32)] (a view of channels-last memory)."""
        return self.forward_stages(images).fused_maps[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the last fused map [B, C4, H, W]; `pre_logits` stops at the pooled, normalised features [B, C4]."""
        x = self.conv_norm(x.mean((-2, -1)))
        return x if pre_logits else self.conv_head(x)

    def forward_stages(self, images: Tensor) -> StageMaps:
        """The outputs of all stages of all three branches."""
        trace_for_every_size(images)
        self._check_images(images)
        x = pad_to_multiple(images.permute(0, 2, 3, 1), STRIDE)
        global_maps = self._global_branch(x)
        local_maps = self._local_branch(x)
        fused_maps = self._fusion(local_maps, global_maps)
        return StageMaps(*([x.permute(0, 3, 1, 2) for x in maps] for maps in (local_maps, global_maps, fused_maps)))

    def _global_branch(self, x: Tensor) -> list[Tensor]:
        x = self.pos_drop(self.patch_embed(x))
        maps = []
        for stage in (self.layers1, self.layers2, self.layers3, self.layers4):
            x = stage(x)
            maps.append(x)
        return maps

    def _local_branch(self, x: Tensor) -> list[Tensor]:
        maps = []
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(call(downsample, x))
            maps.append(x)
        return maps

    def _fusion(self, local_maps: list[Tensor], global_maps: list[Tensor]) -> list[Tensor]:
        maps: list[Tensor] = []
        fused: Tensor | None = None
        for block, *inputs in zip((self.fu1, self.fu2, self.fu3, self.fu4), local_maps, global_maps, strict=True):
            fused = run(block, *inputs, fused, checkpointing=self.grad_checkpointing)
            maps.append(fused)
        return maps

    def _check_images(self, images: Tensor) -> None:
        check_images(images, self.in_chans)
        if not images.is_floating_point():
            raise TypeError(f"images must be floating point, got {images.dtype}: scale and normalise them first")
        embed = self.patch_embed
        if not is_plain(embed, PatchEmbed) or not is_plain(embed.proj, Conv2d):
            return  # a wrapper as FSDP moves and casts what it is given
        weight = embed.proj.weight
        if images.device != weight.device:
            raise ValueError(f"images must be on the model's device, {weight.device}, got {images.device}")
        if images.dtype != weight.dtype and not torch.is_autocast_enabled(images.device.type):
            raise TypeError(f"images must be {weight.dtype} like the model's weights, got {images.dtype}")

    def get_classifier(self) -> nn.Module:
        """The layer that gives the logits: a linear, or an identity where num_classes is 0."""
        return self.conv_head

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a new one of `num_classes` outputs (0 for none), initialised as at construction.

        The `record`, which tells of the old one, is emptied.
        """
        self.options = replace(self.options, num_classes=num_classes)
        self.record = {}
        like = next(weight for weight in self.parameters() if weight.is_floating_point())
        for name in ("conv_head", "head"):
            head = _classifier(self.num_features, num_classes).to(like.device, like.dtype)
            _init_weights(head)
            setattr(self, name, head)
        kept = {name: shape for name, shape in self.weight_shapes.items() if not name.startswith(_HEADS)}
        heads = {name: tensor.shape for name, tensor in self.state_dict().items() if name.startswith(_HEADS)}
        self.weight_shapes = kept | heads

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """In training, keep the maps between blocks only and compute the rest again in the backward pass."""
        self.grad_checkpointing = check_flag("enable", enable)
        for stage in self.modules():
            if isinstance(stage, (GlobalStage, LocalStage)):
                stage.grad_checkpointing = enable


class HiFuseFeatures(HiFuse):
    """HiFuse as a backbone: the forward returns the list of fused maps [B, C_i, H_i, W_i] of the stages `out_indices`.

    Args:
        out_indices: stages, 0 to 3 (negative ones count from the end), in the order in which their maps are returned.
        options: those of `HiFuse`. `num_classes` is 0 unless given; the classifier is there for checkpoints only.
    """

    def __init__(self, num_classes: int = 0, *, out_indices: Sequence[int] = (0, 1, 2, 3), **options: Any) -> None:
        indices = check_out_indices(out_indices)
        super().__init__(num_classes, **options)
        self.feature_info = FeatureInfo([{"num_chs": self.dims[i], "reduction": REDUCTIONS[i], "index": i} for i in indices])

    def forward(self, images: Tensor) -> list[Tensor]:  # type: ignore[override]
        fused_maps = self.forward_stages(images).fused_maps
        return [fused_maps[info["index"]] for info in self.feature_info.info]


remember_forward(GlobalStage, LocalStage, PatchEmbed, HiFuse, HiFuseFeatures)
refuse_scripts(GlobalStage, LocalStage, PatchEmbed, HiFuse, HiFuseFeatures)


class FeatureInfo(NamedTuple):
    """What the maps of `HiFuseFeatures` are, in the terms of timm: a dict a map with `num_chs`, `reduction` and `index`."""

    info: list[dict[str, int]]

    def channels(self) -> list[int]:
        """Channels of each map."""
        return [each["num_chs"] for each in self.info]

    def reduction(self) -> list[int]:
        """Image size over map size of each map."""
        return [each["reduction"] for each in self.info]


SIZES: dict[str, dict[str, Any]] = {
    "hifuse_tiny": {"depths": (2, 2, 2, 2)},
    "hifuse_small": {"depths": (2, 2, 6, 2)},
    "hifuse_base": {"depths": (2, 2, 18, 2)},
}


def list_models() -> list[str]:
    """The names that `create_model` knows."""
    return list(SIZES)


def create_model(
    name: str,
    num_classes: int | None = None,
    *,
    features_only: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> HiFuse:
    """A new network with initial weights (`create_model_from_checkpoint` makes a trained one), in training mode.

    Args:
        name: "hifuse_tiny", "hifuse_small" or "hifuse_base" (2, 6 or 18 blocks at stage 3).
        num_classes: as in `HiFuse`; 1000 unless given, as in timm, or 0 with `features_only`.
        features_only: make a `HiFuseFeatures`, which takes `out_indices` too.
        device: where to build; "meta" builds without memory, for `load_state_dict(assign=True)`.
        dtype: floating dtype of the weights, which are drawn in the default dtype first.
        options: those of `HiFuse`; they override the size's own.

    Raises:
        TypeError, ValueError: an unknown name or option, or one that does not fit, named in the message.
    """
    check_choice("name", name, list_models())
    network: Callable[..., HiFuse] = HiFuseFeatures if check_flag("features_only", features_only) else HiFuse
    known = [field.name for field in fields(HiFuseOptions)[1:]] + features_only * ["out_indices"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise TypeError(f"unknown option {', '.join(unknown)}; the options are {', '.join(known)}")
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point dtype, got {dtype}")
    if num_classes is not None:
        options["num_classes"] = num_classes
    with torch.device(device) if device is not None else contextlib.nullcontext():
        model = network(**{**SIZES[name], **options})
    return model if dtype is None else model.to(dtype=dtype)


def _rising_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates that rise linearly from 0 to `rate` over all blocks, stage by stage."""
    # On the CPU by name, and not fake: also where the model is built on the meta device, or in a FakeTensorMode.
    with unset_fake_temporarily():
        rates = iter(torch.linspace(0, rate, sum(depths), device="cpu").tolist())
    return [[next(rates) for _ in range(depth)] for depth in depths]


def _classifier(dim: int, num_classes: int) -> nn.Module:
    return nn.Linear(dim, num_classes) if num_classes else nn.Identity()


def _init_weights(module: nn.Module) -> None:
    """The official initial weights of everything but the fusion. LayerNorms are 1 and 0 from the start."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        draw_normal(module.weight, 0.02 if isinstance(module, nn.Linear) else 0.2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_out_indices(out_indices: Any) -> list[int]:
    """Stages as numbers from 0, in their order."""
    if not isinstance(out_indices, Sequence) or isinstance(out_indices, str) or not out_indices:
        raise ValueError(f"out_indices must be a sequence of stages 0 to {STAGES - 1}, got {out_indices!r}")
    indices = [check_count(f"out_indices[{i}]", index, least=-STAGES) for i, index in enumerate(out_indices)]
    if max(indices) >= STAGES:
        raise ValueError(f"out_indices must be stages 0 to {STAGES - 1}, got {out_indices!r}")
    return [index % STAGES for index in indices]
