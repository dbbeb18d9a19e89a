"""A network -> a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from hifuse_fast.checkpoints.errors import CheckpointError
from hifuse_fast.checkpoints.read import OPTIONS, RECORD, is_counter, strip_prefixes
from hifuse_fast.checkpoints.recognise import check_weights, fit
from hifuse_fast.checkpoints.tensors import why_no_weight
from hifuse_fast.checkpoints.wrappers import find_networks
from hifuse_fast.files import replacing
from hifuse_fast.model import HiFuse
from hifuse_fast.ops.prepared.base import PreparedOp


def save_checkpoint(model: nn.Module, path: str | os.PathLike[str], record: Mapping[str, Any] | None = None) -> None:
    """Write the state_dict of `model` as safetensors, of what it wraps where it is an AveragedModel, compiled, ...

    Of a HiFuse the metadata say its options, so that `create_model_from_checkpoint` makes the same network. Weights that share
    memory are written once for each of their names. The file appears whole or not at all.

    Args:
        model: what is saved.
        path: of the file; it must end in .safetensors.
        record: what else is to be known of the network, as JSON has it; `read_record` gives it back. `hifuse-fast train` writes
            "classes", "images" (how they are read and prepared), "configuration", "versions", "data", "epoch", "step"
            and "metrics".

    Raises:
        TypeError: `model` is no module, or is frozen for inference.
        ValueError: `path` does not end in .safetensors; a weight that could not be loaded again: quantised, complex, sparse, on
            meta or not finite; a HiFuse whose weights are not those of its options.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if any(isinstance(module, PreparedOp) for module in model.modules()):
        raise TypeError(
            f"model must have its official weights, got a frozen {type(model).__name__}: write it by its own save(path), or"
            " save the network that it was made of"
        )
    _check_path(path)
    network = _find_network(model)
    state_dict, metadata = strip_prefixes((network or model).state_dict()), {"format": "pt"}
    for name, tensor in state_dict.items():
        reason = why_no_weight(tensor) if isinstance(tensor, Tensor) else f"is of type {type(tensor).__name__}, and no tensor"
        if reason is not None:
            raise ValueError(f"model cannot be saved: {name} {reason}")
    if network is not None:
        try:
            check_weights(state_dict, network)
        except CheckpointError as error:
            raise ValueError(f"model must have the weights of its options: {error}") from None
        state_dict = fit(state_dict, network)
        metadata[OPTIONS] = json.dumps(network.options.to_dict())
    if record is not None:
        metadata[RECORD] = json.dumps(record)
    write_safetensors(state_dict, path, metadata)


def _find_network(model: nn.Module) -> HiFuse | None:
    """The one HiFuse that `model` is or wraps; None where there is none, or where other weights stand beside it."""
    found = [(name, each) for name, each in find_networks(model).items() if isinstance(each, HiFuse)]
    if len(found) != 1:
        return None
    name, network = found[0]
    beside = [key for key in model.state_dict() if not key.startswith(name) and not is_counter(key)]
    return None if beside else network


def write_safetensors(tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: dict[str, str]) -> None:
    """Write tensors and metadata as safetensors. The file appears whole or not at all; see `save_checkpoint`."""
    _check_path(path)
    with replacing(path) as unfinished:
        try:
            safetensors.torch.save_file(_apart(tensors), unfinished, metadata=metadata)
        except SafetensorError as error:  # such as a device without space
            raise OSError(f"{path} cannot be written: {error}") from None


def _check_path(path: str | os.PathLike[str]) -> None:
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {path}")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors contiguous, no two in one memory, which safetensors does not write."""
    apart, seen = {}, set()
    for name, tensor in tensors.items():
        contiguous = tensor.detach().contiguous()
        memory = contiguous.untyped_storage().data_ptr()
        apart[name] = contiguous.clone() if memory in seen else contiguous
        seen.add(memory)
    return apart
