"""What a frozen network is, but for its weights; in a file, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hifuse_fast.blocks import CHANNEL_GATES
from hifuse_fast.checkpoints.kinds import FROZEN
from hifuse_fast.checks import check_choice, check_count, check_eps, check_flag
from hifuse_fast.model import check_out_indices
from hifuse_fast.options import HiFuseOptions

FORMAT, VERSION = FROZEN, "10"
CERTIFICATE = "certificate"  #: the key of metadata, of a network in int8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
ALGORITHMS = ("auto", "direct")
MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous_format": torch.contiguous_format}


@dataclass(frozen=True, kw_only=True)
class Configuration(HiFuseOptions):
    """What a frozen network is, but for its weights: the options of its model, and how it was frozen. In a file, JSON."""

    algorithm: str  # that was asked for; the options of an op say which it has
    dtype: str
    memory_format: str
    out_indices: tuple[int, ...] | None  # of a network that returns maps
    settings: Mapping[str, Any] = field(hash=False)  # eps, shift_size, channel_gate of modules that have others, by name
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("algorithm", self.algorithm, ALGORITHMS)
        check_choice("dtype", self.dtype, tuple(DTYPES))
        check_choice("memory_format", self.memory_format, tuple(MEMORY_FORMATS))
        check_flag("cuda_graphs", self.cuda_graphs)
        if self.out_indices is not None:
            object.__setattr__(self, "out_indices", tuple(check_out_indices(self.out_indices)))
        object.__setattr__(self, "settings", {name: self._check(name, value) for name, value in dict(self.settings).items()})

    def _check(self, name: str, value: Any) -> Any:
        kind = name.rpartition(".")[2]
        if kind == "eps":
            return check_eps(name, value)
        if kind == "channel_gate":
            return check_choice(name, value, CHANNEL_GATES)
        if kind != "shift_size":
            raise ValueError(f"settings must be of eps, shift_size or channel_gate, got {name!r}")
        if check_count(name, value, least=0) >= self.window_size:
            raise ValueError(f"{name} must be below window_size = {self.window_size}, got {value}")
        return int(value)


class Settings:
    """The attributes of modules: those of the configuration, each to be asked for, or else what the official network has."""

    def __init__(self, c: Configuration) -> None:
        self._left = dict(c.settings)

    def __call__(self, name: str, official: Any) -> Any:
        return self._left.pop(name, official)

    def check_all_were_asked_for(self) -> None:
        if self._left:
            raise ValueError(f"the network has no {', '.join(sorted(self._left)[:4])}")
