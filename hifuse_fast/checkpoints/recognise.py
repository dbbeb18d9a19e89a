"""A state_dict -> what its network is: deduced from names and shapes, or compared with what is known."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.checkpoints.errors import CheckpointError
from hifuse_fast.model import SIZES, HiFuse
from hifuse_fast.options import RATES, HiFuseOptions

_SHOWN = 4  # names in a message
_NOT_NEEDED = re.compile(r"(^|\.)num_batches_tracked$")  # nothing uses it where batch norm has a momentum
_IGNORED = re.compile(r"(^|\.)(total_ops|total_params|attn_mask)$")  # what thop and older Swin code add


def describe_checkpoint(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options of `create_model` for which `state_dict` loads, deduced from its names and shapes.

    What leaves no trace in the weights is not in it: `channel_gate`, dropout and stochastic depth. A file of
    `save_checkpoint` says those. Counters of thop, `attn_mask` buffers, a missing `num_batches_tracked` are no difference.

    Raises:
        CheckpointError: another architecture; the message names a few of the tensors that are missing, unexpected, of another
            shape, or not floating point.
    """
    options = deduce_options(state_dict)
    with torch.device("meta"):
        network = HiFuse(**options.to_dict())
    check_weights(state_dict, network)
    described = {name: getattr(options, name) for name in options.to_dict() if name not in (*RATES, "channel_gate")}
    return {"name": size_of(options), **described}


def deduce_options(state_dict: Mapping[str, Tensor]) -> HiFuseOptions:
    """The options that names and shapes tell; where they tell too little, those of the smallest network.

    Raises:
        CheckpointError: they fit no network at all.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    try:
        return HiFuseOptions(**(_deduce(shapes) or {**SIZES["hifuse_tiny"], "num_classes": _classes(shapes)}))
    except ValueError as error:
        raise CheckpointError(f"not a HiFuse checkpoint: {error}") from None


def check_weights(state_dict: Mapping[str, Tensor], network: HiFuse) -> None:
    """Raise CheckpointError unless `state_dict` has the names, shapes and kinds of values of the network's."""
    found = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    differences = _differences(found, {name: tuple(shape) for name, shape in network.weight_shapes.items()})
    if differences:
        raise CheckpointError(f"not a HiFuse checkpoint of the current architecture: {differences}{_hint(found, network)}")
    for name, tensor in state_dict.items():
        if not tensor.is_floating_point() and not is_index(name) and not _IGNORED.search(name):
            raise CheckpointError(f"{name} is {tensor.dtype}, and a weight is floating point: convert the weights back first")


def fit(state_dict: Mapping[str, Tensor], network: HiFuse) -> dict[str, Tensor]:
    """What `network` loads of a state_dict that `check_weights` passed: without what it ignores, with what it misses."""
    return {
        name: state_dict[name].long() if is_index(name) and name in state_dict else state_dict.get(name, torch.tensor(0))
        for name in network.weight_shapes
    }


def check_sizes(options: HiFuseOptions, state_dict: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError where shapes tell another option than `options` says: before a network of these is built."""
    deduced = _deduce({name: tuple(tensor.shape) for name, tensor in state_dict.items()})
    if deduced is None:
        raise CheckpointError("weights are missing, of which it should have all")
    for name, told in deduced.items():
        said = getattr(options, name)
        if said != told:
            raise CheckpointError(f"its options say {name} = {said}, its weights {told}")


def is_index(name: str) -> bool:
    """Whether the official tensor of this name holds integers."""
    return name.endswith(("num_batches_tracked", "relative_position_index"))


def size_of(options: HiFuseOptions) -> str:
    """The name of the size that has these depths, or of any: with all options given, the name says no more."""
    return next((name for name, size in SIZES.items() if size["depths"] == options.depths), next(iter(SIZES)))


def _deduce(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """The options that shapes tell, None where they tell too little."""
    try:
        patches = shapes["patch_embed.proj.weight"]
        tables = [shapes[f"layers{i}.blocks.0.attn.relative_position_bias_table"] for i in (1, 2, 3, 4)]
        dims = (patches[0], *(shapes[f"downsample_layers.{i}.1.weight"][0] for i in (1, 2, 3)))
        return {
            "num_classes": _classes(shapes),
            "in_chans": patches[1],
            "dims": dims,
            "depths": tuple(_count(shapes, rf"layers{i}\.blocks\.(\d+)\.") for i in (1, 2, 3, 4)),
            "conv_depths": tuple(_count(shapes, rf"stages\.{i}\.(\d+)\.") for i in (0, 1, 2, 3)),
            "num_heads": tuple(table[1] for table in tables),
            "window_size": (round(tables[0][0] ** 0.5) + 1) // 2,
            "qkv_bias": "layers1.blocks.0.attn.qkv.bias" in shapes,
            "mixer": "dense" if shapes["fu1.residual.conv1.conv.weight"][1] == 3 * dims[0] else "depthwise",
        }
    except (KeyError, IndexError):
        return None


def _classes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return next(iter(shapes.get("conv_head.weight", ())), 0)


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    """How many different numbers the names have where `pattern` has its group."""
    return len({match.group(1) for name in shapes if (match := re.match(pattern, name))})


def _differences(shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    """What is missing, unexpected or of another shape, a few names of each; empty where nothing is."""
    rows = {
        "missing": [name for name in expected if name not in shapes and not _NOT_NEEDED.search(name)],
        "unexpected": [name for name in shapes if name not in expected and not _IGNORED.search(name)],
        "of another shape": [
            f"{name} {list(shapes[name])} (expected {list(expected[name])})"
            for name in expected
            if name in shapes and shapes[name] != expected[name]
        ],
    }
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for kind, names in rows.items()
        if names
    )


def _hint(shapes: Mapping[str, Sequence[int]], network: HiFuse) -> str:
    """What is likely: another classifier, or where all that is there fits and much is missing, a part."""
    others = {name for name, shape in network.weight_shapes.items() if shapes.get(name) != tuple(shape)}
    if others and all(name.startswith(("conv_head.", "head.")) for name in others):
        return "; a classifier is changed by reset_classifier"
    part = len(shapes) < len(network.weight_shapes) and set(shapes) <= set(network.weight_shapes)
    return "; it may be one shard of several, which are to be put together first" if part and shapes else ""
