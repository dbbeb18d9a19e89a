"""Tile sizes: which configuration a kernel is launched with on an architecture, and where the library is the faster one.

`tables/<architecture>.toml` holds them, a table per kernel and a line per key (what of the call decides, as the launcher says;
"*" for all others), with the origin of each: "predicted", or where and when it was measured. An architecture without a table
uses that of the newest one before it. Nothing is tuned in a user's call; `make tune` writes the tables on a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import re
import tomllib
from collections.abc import Iterator
from importlib import resources
from typing import Any

import torch

Config = dict[str, int]
DEFAULT_ARCHITECTURE = "sm_90"  # of calls on no GPU: on the meta device, and in Triton's interpreter
REFERENCE = "reference_time"  #: beside a choice that was measured: the time of the reference over that of the Triton kernels
_NOTES = ("origin", REFERENCE)  # what an entry says beside its configuration

_override: dict[str, Config] = {}
_lookups: list[tuple[str, str]] | None = None
_assumed: str | None = None  # the architecture that calls shall take this machine's to be


def architecture(device: torch.device) -> str:
    """The architecture whose table a call on `device` asks, as "sm_90". Needs no Triton."""
    if _assumed is not None:
        return _assumed
    if device.type == "cuda":
        return _capability(torch.cuda.current_device() if device.index is None else device.index)
    return DEFAULT_ARCHITECTURE


@functools.cache
def _capability(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


@contextlib.contextmanager
def assume(architecture: str) -> Iterator[None]:
    """Within the block, `architecture` of every device is this one: for kernels that are compiled ahead of time."""
    global _assumed  # noqa: PLW0603
    before, _assumed = _assumed, architecture
    try:
        yield
    finally:
        _assumed = before


def lookup(kernel: str, key: str, architecture: str) -> Config:
    """The configuration of `kernel` for `key` on `architecture`; the keys "num_warps" and "num_stages" are Triton's own."""
    if _lookups is not None:
        _lookups.append((kernel, key))
    if kernel in _override:
        return _override[kernel]
    return _find(kernel, key, architecture)


@functools.cache
def _find(kernel: str, key: str, architecture: str) -> Config:
    entries = table(nearest(architecture))[kernel]
    entry = entries.get(key) or entries["*"]
    return {name: value for name, value in entry.items() if name not in _NOTES}


@contextlib.contextmanager
def override(kernel: str, config: Config) -> Iterator[None]:
    """Within the block, every lookup of `kernel` gives `config`: for tuning and tests."""
    before = dict(_override)
    _override[kernel] = config
    try:
        yield
    finally:
        _override.clear()
        _override.update(before)


@contextlib.contextmanager
def lookups() -> Iterator[list[tuple[str, str]]]:
    """Collects the (kernel, key) that are looked up within the block."""
    global _lookups  # noqa: PLW0603
    before, _lookups = _lookups, []
    try:
        yield _lookups
    finally:
        _lookups = before


def reload() -> None:
    """Read the tables again, which were written."""
    for cached in (_find, table, nearest):
        cached.cache_clear()


def architectures() -> list[str]:
    """The architectures that have a table, oldest first."""
    names = (entry.name for entry in _folder().iterdir() if entry.name.startswith("sm_"))
    return sorted((name.removesuffix(".toml") for name in names), key=_number)


@functools.cache
def table(architecture: str) -> dict[str, dict[str, Any]]:
    """The table of an architecture: kernel -> key -> configuration and its origin."""
    return tomllib.loads((_folder() / f"{architecture}.toml").read_text())


def _folder() -> Any:
    return resources.files("hifuse_fast.backends") / "tables"


def _number(architecture: str) -> int:
    return int(re.sub(r"\D", "", architecture))


@functools.cache
def nearest(architecture: str) -> str:
    """The architecture whose table this one uses: its own, or the newest one before it."""
    known = architectures()
    return max((name for name in known if _number(name) <= _number(architecture)), key=_number, default=known[0])
