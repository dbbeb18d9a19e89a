"""What a run needs to go on with the same bits: one file, which appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hifuse_fast.checkpoints.save import write_safetensors

VERSION = 1
_KEY = "hifuse_fast.training"  # of the metadata


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
    text = json.dumps({"version": VERSION, "progress": asdict(state.progress), **state.facts})
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
        return State(safetensors.torch.load_file(path) if tensors else {}, Progress(**facts.pop("progress")), facts)
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"state {path} is damaged, or no state of a training: {error}") from None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer keeps of each parameter, as "<parameter>/<what>"."""
    content = optimizer.state_dict()
    names = {
        i: name for group in content["param_groups"] for i, name in zip(group["params"], group["param_names"], strict=True)
    }
    return {f"{names[i]}/{key}": tensor for i, kept in content["state"].items() for key, tensor in kept.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    content = optimizer.state_dict()
    indices = {
        name: i for group in content["param_groups"] for i, name in zip(group["params"], group["param_names"], strict=True)
    }
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        state.setdefault(indices[parameter], {})[key] = tensor
    optimizer.load_state_dict({**content, "state": state})
