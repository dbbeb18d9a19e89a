"""This process's part of the work, where torchrun or a scheduler started several."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True)
class Share:
    """The batches of one process among several: batch b is that of rank b % world, so that batches are those of one process."""

    rank: int = 0
    world: int = 1
    local: int = 0  #: its number on its machine

    @classmethod
    def of_environment(cls) -> Self:
        """What RANK, WORLD_SIZE and LOCAL_RANK say, or the whole; ValueError where they do not fit."""
        values = {name: os.environ.get(name, default) for name, default in (("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))}
        if values["WORLD_SIZE"] == "1":
            return cls()
        values["RANK"] = os.environ.get("RANK", "")
        for name, value in values.items():
            if not value.isdecimal():
                raise ValueError(f"the environment's {name} must be a number, got {value!r}")
        rank, world = int(values["RANK"]), int(values["WORLD_SIZE"])
        if rank >= world:
            raise ValueError(f"the environment's RANK must be below its WORLD_SIZE of {world}, got {rank}")
        return cls(rank, world, int(values["LOCAL_RANK"]))

    def indices(self, count: int, batch_size: int) -> Iterator[int]:
        """Those of `count` things that are this process's."""
        for start in range(self.rank * batch_size, count, self.world * batch_size):
            yield from range(start, min(start + batch_size, count))

    def place(self, device: torch.device) -> torch.device:
        """The GPU of this process, where it shares a machine with others and nobody named one."""
        if self.world > 1 and device.type == "cuda" and device.index is None:
            return torch.device("cuda", self.local)
        return device

    def __str__(self) -> str:
        return f"{self.rank}-of-{self.world}"
