"""What freezing reads of a model: its options, its weights by their official names, and what its modules have been set to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hifuse_fast.blocks import CHANNEL_GATES
from hifuse_fast.checkpoints import CheckpointError
from hifuse_fast.checkpoints.recognise import check_weights, deduce_options
from hifuse_fast.checkpoints.tensors import why_no_weight
from hifuse_fast.checks import check_eps
from hifuse_fast.edits import check_eval, edits, is_used, network_of, new_network, stands_for, tree
from hifuse_fast.model import HiFuse, HiFuseFeatures
from hifuse_fast.options import HiFuseOptions

# What the attributes of modules are to a frozen network. All others must be as in a new network.
READ = {"eps", "shift_size", "channel_gate"}  #: of each module on its own
WITHOUT_EFFECT = {
    *("training", "grad_checkpointing", "p", "inplace", "rate", "attn_drop", "momentum", "track_running_stats"),  # in eval mode
    *("affine", "elementwise_affine", "weight_shapes"),  # the weights tell
    *("options", "record", "feature_info"),  # of the whole model, which are read
}
_OF_EVERY_MODULE = set(vars(nn.Module()))


class Source(NamedTuple):
    """A model as it is to be frozen."""

    weights: dict[str, Tensor]  # by their official names, and the eps of each batch norm as `<name>.eps`
    options: HiFuseOptions
    settings: dict[str, Any]  # attributes by name, where they differ from what the options say
    out_indices: tuple[int, ...] | None  # of a network that returns maps
    record: dict[str, Any]  # what its checkpoint said of it besides


def read_source(model: Any) -> Source:
    """What `model` says to the one who freezes it.

    Raises:
        TypeError: it is no module.
        ValueError: it is not in eval mode, no HiFuse, or does what a frozen network would not; the message names it.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    network = network_of(model)
    check_eval(network)
    weights = _state(network)
    try:
        options = _options(network, weights)
        expected = new_network(HiFuseFeatures if isinstance(network, HiFuseFeatures) else HiFuse, options)
        for reason in edits(network, expected):
            raise ValueError(f"model cannot be frozen: {reason}; undo that, or use the model as it is")
        changed = _settings(network, expected)
        weights = _complete(weights, expected, network)
        check_weights(weights, expected)
    except CheckpointError as error:
        raise ValueError(f"model must be HiFuse with the official state_dict: {error}") from None
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    _check_values(weights)
    settings = {}
    for name, value in changed.items():
        if isinstance(expected.get_submodule(name.rpartition(".")[0]), nn.BatchNorm2d):
            weights[name] = torch.tensor(check_eps(name, value), dtype=torch.float64, device="cpu")
        else:
            settings[name] = value
    maps = network.feature_info.info if isinstance(network, HiFuseFeatures) else None
    indices = None if maps is None else tuple(each["index"] for each in maps)
    record = _record(network) if options.num_classes == getattr(network, "num_classes", None) else {}
    return Source(weights, options, settings, indices, record)


def _state(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a state_dict as the modules have them, whatever hooks on it would make of them."""
    return {
        f"{name}.{key}".removeprefix("."): tensor.detach()
        for name, module in tree(network)
        for key, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None and key not in module._non_persistent_buffers_set
    }


def _settings(network: nn.Module, expected: HiFuse) -> dict[str, Any]:
    """The attributes `READ` that differ from those of `expected`, a new network, by name; ValueError where another one does."""
    used, foreign, found = is_used(expected), not isinstance(network, HiFuse), dict(tree(network))
    changed = {}
    for name, module in tree(expected):
        if not used(name) or name not in found:
            continue
        keys = set(vars(module)) - _OF_EVERY_MODULE - WITHOUT_EFFECT
        holders = [found[name]]
        if stands_for(module, found[name], foreign) is None:  # the official block has the shift, not its attention
            keys, holders = keys & READ, [found[name], found[name.rpartition(".")[0]]]
        for key in sorted(keys):
            value = getattr(module, key)
            given = next((getattr(each, key) for each in holders if hasattr(each, key)), value)
            path = f"{name}.{key}".removeprefix(".")
            if not _same(given, value):
                changed[path] = given
                if key not in READ:
                    raise ValueError(f"model cannot be frozen: {path} must be {value!r} as its options say, got {given!r}")
    return changed


def _record(network: nn.Module) -> dict[str, Any]:
    """What a HiFuse keeps of its checkpoint; ValueError where no file could hold it."""
    record = network.record if isinstance(network, HiFuse) else {}
    try:
        copy = json.loads(json.dumps(record, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"model.record must be a dict as JSON has it: {error}") from None
    if not isinstance(copy, dict):
        raise ValueError(f"model.record must be a dict as JSON has it, got {type(record).__name__}")
    return copy


def _same(a: Any, b: Any) -> bool:
    try:
        return a is b or bool(a == b)
    except (RuntimeError, TypeError, ValueError):  # as of tensors and arrays
        return False


def _options(network: nn.Module, weights: Mapping[str, Tensor]) -> HiFuseOptions:
    """Those of a HiFuse, with the classes and the gate that its modules have; or what names and shapes tell."""
    if not isinstance(network, HiFuse):
        return deduce_options(weights)
    head, options = weights.get("conv_head.weight"), network.options
    if not isinstance(options, HiFuseOptions):
        raise ValueError(f"model.options must be HiFuseOptions, got {type(options).__name__}")
    if head is not None and head.dim() == 2:
        options = replace(options, num_classes=len(head))
    elif type(network.conv_head) is nn.Identity:
        options = replace(options, num_classes=0)
    gates: set[str] = {getattr(getattr(network, f"fu{i}", None), "channel_gate", "") for i in (1, 2, 3, 4)}
    return replace(options, channel_gate=gates.pop()) if len(gates) == 1 and gates <= set(CHANNEL_GATES) else options


def _complete(weights: Mapping[str, Tensor], expected: HiFuse, network: nn.Module) -> dict[str, Tensor]:
    """The weights, with ones and zeros where a norm or a linear has None, and with a `head` that fits: nothing uses it."""
    complete = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    modules = dict(tree(network))
    like = next(iter(complete.values()), torch.empty(0))
    for name, tensor in expected.state_dict().items():
        place, _, key = name.rpartition(".")
        if place == "head":
            complete[name] = tensor
        elif name not in complete and place in modules and modules[place]._parameters.get(key, like) is None:
            if key == "bias":
                complete[name] = torch.zeros(tensor.shape, dtype=torch.float64, device=like.device)
            elif isinstance(expected.get_submodule(place), (nn.LayerNorm, nn.BatchNorm2d)):
                complete[name] = torch.ones(tensor.shape, dtype=torch.float64, device=like.device)
    return complete


def _check_values(weights: Mapping[str, Tensor]) -> None:
    devices = {str(tensor.device) for tensor in weights.values()}
    if len(devices) != 1 or "meta" in devices:
        raise ValueError(f"model must have its weights on one device, and not on meta, got {', '.join(sorted(devices))}")
    for name, tensor in weights.items():
        if type(tensor) not in (Tensor, nn.Parameter):
            raise ValueError(f"model cannot be frozen: {name} is a {type(tensor).__name__}, and no plain tensor")
        reason = why_no_weight(tensor)
        if reason is not None:
            raise ValueError(f"model cannot be frozen: {name} {reason}")
