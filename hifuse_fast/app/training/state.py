"""What a run needs to go on with the same bits: one file, which appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hifuse_fast.checkpoints.save import write_safetensors

VERSION = 2
_KEY = "hifuse_fast.training"  # of the metadata
_FACTS = {
    "configuration": dict, "options": dict, "classes": list, "data": str, "versions": dict, "threads": int, "world": int,
    "scaler": dict,
}  # fmt: skip


@dataclass
class Progress:
    """How far a run is, and what it logged."""

    step: int = 0  #: steps in all
    epoch: int = 0  #: epochs that are over
    position: int = 0  #: steps of the epoch that runs
    loss: float = 0.0  #: the sum over its images so far
    weight: float = 0.0  #: the sum of their weights
    correct: float = 0.0
    seen: float = 0.0
    best: float | None = None
    best_epoch: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)  #: of the log, one an epoch


@dataclass(frozen=True)
class State:
    """Tensors by name, and everything else as JSON has it."""

    tensors: Mapping[str, Tensor]
    progress: Progress
    facts: Mapping[str, Any]  #: configuration, options, classes, data, versions, threads, parts, scaler

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`, by the rest of the name."""
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


def write_state(path: Path, state: State) -> None:
    """Write the state in place of an older one."""
    text = json.dumps({"version": VERSION, "tensors": len(state.tensors), "progress": asdict(state.progress), **state.facts})
    write_safetensors(state.tensors, path, {"format": _KEY, _KEY: text})


def read_state(path: Path, *, tensors: bool = True) -> State:
    """The state in a file; without its `tensors` in no time.

    Raises:
        ValueError: it is damaged, no state, or one of another version.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            facts = json.loads((opened.metadata() or {})[_KEY])
        version = facts.pop("version")
        if version != VERSION:
            raise ValueError(f"state {path} has version {version}; this is hifuse_fast of version {VERSION}")
        count, progress = facts.pop("tensors"), Progress(**facts.pop("progress"))
        _check_progress(progress)
        _check_facts(facts)
        found = safetensors.torch.load_file(path) if tensors else {}
        if tensors and len(found) != count:
            raise KeyError(f"{len(found)} tensors of {count}")
        return State(found, progress, facts)
    except (SafetensorError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"state {path} is damaged, or no state of a training: {error}") from None


def _check_progress(progress: Progress) -> None:
    """TypeError where a number of `progress` is none that can be."""
    for each in fields(Progress):
        value, kind = getattr(progress, each.name), {"int": int, "list[dict[str, Any]]": list}.get(str(each.type), float | int)
        if value is None and each.default is None:
            continue
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            raise TypeError(f"{each.name} of its progress is {value!r}")


def _check_facts(facts: Mapping[str, Any]) -> None:
    """KeyError or TypeError where a fact is missing, or of another type."""
    for name, kind in _FACTS.items():
        if not isinstance(facts[name], kind):
            raise TypeError(f"{name} is {facts[name]!r}")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer keeps of each parameter, as "<parameter>/<what>"."""
    content = optimizer.state_dict()
    names = {
        i: name for group in content["param_groups"] for i, name in zip(group["params"], group["param_names"], strict=True)
    }
    return {f"{names[i]}/{key}": tensor for i, kept in content["state"].items() for key, tensor in kept.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; ValueError where it is of other parameters."""
    content = optimizer.state_dict()
    own = {
        name: (i, parameter)
        for described, group in zip(content["param_groups"], optimizer.param_groups, strict=True)
        for i, name, parameter in zip(described["params"], described["param_names"], group["params"], strict=True)
    }
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        if parameter not in own or (tensor.dim() and tensor.shape != own[parameter][1].shape):
            raise ValueError(f"the optimizer has no {name} {list(tensor.shape)}")
        state.setdefault(own[parameter][0], {})[key] = tensor.clone()  # in memory of its own, not that of the file
    optimizer.load_state_dict({**content, "state": state})
