"""Checkpoints: read safely, recognise, check, load, save. Files are safetensors, or torch files read with weights_only."""

from __future__ import annotations

import os
import pickle
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hifuse_fast.model import SIZES, HiFuse, create_model

_WRAPPERS = ("model", "model_state_dict", "net", "state_dict")  # where training scripts put it; the official one in "net"
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile
_SHOWN = 4  # names in a message


class CheckpointError(ValueError):
    """A file that is no usable HiFuse checkpoint; the message says why."""


def load_checkpoint(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The state_dict in a file, for any network: names without wrappers and prefixes, every value a finite tensor.

    A file named *.safetensors is read as such, any other by torch.load with weights_only=True, so that no code in it runs.
    {"model": ...}, {"net": ...}, {"state_dict": ...}, {"model_state_dict": ...} are unwrapped; the prefixes "module." and
    "_orig_mod." go.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is truncated, holds something else than tensors or code, or a weight is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file")
    state_dict = _unwrap(path, _read(path, device))
    for name, tensor in state_dict.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"checkpoint {path}: {name} has values that are not finite")
    return state_dict


def describe_checkpoint(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options of `create_model` for which `state_dict` loads strictly, deduced from its names and shapes.

    What leaves no trace in the weights is not in it: `channel_gate`, dropout and stochastic depth.

    Raises:
        CheckpointError: another architecture; the message names a few of the tensors that are missing, unexpected or of
            another shape.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    options = _deduce(shapes)
    try:
        expected = {name: tuple(t.shape) for name, t in create_model(**options, device="meta").state_dict().items()}
    except ValueError as error:
        raise CheckpointError(f"not a HiFuse checkpoint: {error}") from None
    differences = _differences(shapes, expected)
    if differences:
        raise CheckpointError(f"not a HiFuse checkpoint of the current architecture: {differences}")
    return options


def create_model_from_checkpoint(
    path: str | os.PathLike[str],
    channel_gate: str = "sigmoid",
    device: torch.device | str = "cpu",
    *,
    num_classes: int | None = None,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> HiFuse:
    """The trained network of a checkpoint, in eval mode; its size and options are deduced from the weights.

    Args:
        path: see `load_checkpoint`.
        channel_gate: "double_sigmoid" for checkpoints trained with the official code of September 2022 to 2024-01-16: they
            have the same names and shapes, and give other logits.
        device: where the network goes.
        num_classes: where it is not the checkpoint's, the classifier is replaced by a new one (to be trained).
        dtype: of the weights, whatever the file has.
        overrides: options of `create_model` that the weights do not fix (rates of dropout, `features_only`, `out_indices`).

    Raises:
        FileNotFoundError, CheckpointError: see `load_checkpoint` and `describe_checkpoint`.
        TypeError, ValueError: an option that does not fit, or that the checkpoint fixes.
    """
    state_dict = load_checkpoint(path)
    try:
        options = describe_checkpoint(state_dict)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from None
    fixed = sorted(set(overrides) & set(options))
    if fixed:
        raise TypeError(f"{', '.join(fixed)} cannot be overridden: the weights of {path} fix it as {options[fixed[0]]!r}")
    model = create_model(**options, **overrides, channel_gate=channel_gate, device="meta")
    model.load_state_dict(state_dict, assign=True)
    model.to(device=device, dtype=dtype)
    if num_classes is not None and num_classes != options["num_classes"]:
        model.reset_classifier(num_classes)
    return model.eval()


def save_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the state_dict of `model` (also wrapped by DistributedDataParallel or compiled) as safetensors.

    The file appears whole or not at all: it is written beside `path` under another name and renamed.

    Raises:
        TypeError: `model` is no module.
        ValueError: `path` does not end in .safetensors.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    write_safetensors(strip_prefixes(model.state_dict()), path, {"format": "pt"})


def write_safetensors(tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: dict[str, str]) -> None:
    """Write tensors and metadata as safetensors. The file appears whole or not at all; see `save_checkpoint`."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        safetensors.torch.save_file({name: t.contiguous() for name, t in tensors.items()}, temporary, metadata=metadata)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def strip_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict without the prefixes that DistributedDataParallel and torch.compile put before every name."""
    names = list(state_dict)
    while True:
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in names)), None)
        if prefix is None or not names:
            return dict(zip(names, state_dict.values(), strict=True))
        names = [name.removeprefix(prefix) for name in names]


def _read(path: Path, device: torch.device | str) -> Any:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path, device=str(device))
        return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        reason = "it is damaged, or holds objects other than tensors, which could run code: save its state_dict alone"
    except (SafetensorError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = f"it is damaged or no checkpoint ({str(error).strip().partition(chr(10))[0] or type(error).__name__})"
    raise CheckpointError(f"checkpoint {path} cannot be read: {reason}")


def _unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"checkpoint {path} must hold a state_dict, got {type(content).__name__} without weights")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"checkpoint {path} must hold tensors by name, got {type(value).__name__} for {name!r}")
    return strip_prefixes(content)


def _deduce(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Options of `create_model` that these shapes tell; where they tell too little, those of the smallest network."""
    num_classes = next(iter(shapes.get("conv_head.weight", ())), 0)
    try:
        patches = shapes["patch_embed.proj.weight"]
        tables = [shapes[f"layers{i}.blocks.0.attn.relative_position_bias_table"] for i in (1, 2, 3, 4)]
        dims = (patches[0], *(shapes[f"downsample_layers.{i}.1.weight"][0] for i in (1, 2, 3)))
        options = {
            "num_classes": num_classes,
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
        return {"name": "hifuse_tiny", "num_classes": num_classes}
    # A size's own name where it is one, else any: the options say everything.
    names = [name for name, size in SIZES.items() if size["depths"] == options["depths"]] or list(SIZES)
    return {"name": names[0], **options}


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    """How many different numbers the names have where `pattern` has its group."""
    return len({match.group(1) for name in shapes if (match := re.match(pattern, name))})


def _differences(shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    """What is missing, unexpected or of another shape, a few names of each; empty where nothing is."""
    rows = {
        "missing": [name for name in expected if name not in shapes],
        "unexpected": [name for name in shapes if name not in expected],
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
