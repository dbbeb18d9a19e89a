"""The tables of an architecture: with which tile sizes a kernel is launched, and in which order backends serve an op.

`tables/<architecture>.toml` has a section for each kernel and op, and an entry for each key (see choices.py; "*" for all other
calls), with its origin: "predicted", or where and when it was measured. An architecture without a table uses that of the newest
one before it. Nothing is tuned in a user's call; `make tune` writes the tables on a GPU. Needs no Triton.
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

Config = dict[str, Any]  #: tile sizes by name; or for an op `order`, the names of backends
Table = dict[str, dict[str, dict[str, Any]]]  #: section -> key -> entry
DEFAULT_ARCHITECTURE = "sm_90"  # of calls on no GPU: on the meta device, and in Triton's interpreter
ORDER, TIMES, ORIGIN = "order", "times", "origin"
ROWS = "rows"  #: of a kernel that is taken for some sizes of a call alone
_NOTES = (TIMES, ORIGIN)  # what an entry says beside its configuration

_override: dict[str, Config] = {}
_lookups: list[tuple[str, str]] | None = None
_assumed: str | None = None  # the architecture that calls shall take this machine's to be


class TableError(RuntimeError):
    """A table is damaged or of another version; the message has the file, the section and the key."""


def key(*parts: object, dtype: torch.dtype | None = None) -> str:
    """The key of an entry: the dtype's bits where one is given, sizes and words; parts that are "" are left out."""
    bits = "" if dtype is None else f"{8 * dtype.itemsize}-bit"
    return " ".join([word for word in [bits, *[f"{part}" for part in parts]] if word])


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


def lookup(kernel: str, key: str, architecture: str, default: Config | None = None) -> Config:
    """The configuration of a kernel or an op for `key`; of a kernel, "num_warps" and "num_stages" are Triton's own.

    Raises:
        TableError: the table is damaged; or it has no such section, and there is no `default`.
    """
    if _lookups is not None:
        _lookups.append((kernel, key))
    if kernel in _override:
        return _override[kernel]
    found = _find(kernel, key, architecture) or default
    if found is None:
        raise TableError(f"{nearest(architecture)}.toml: has no section [{kernel}]")
    return found


def least_rows(kernel: str, key: str, architecture: str, default: int) -> int:
    """From how many rows of a call on a kernel is taken, as its entry's `rows` says; 0 for never, 1 for always.

    `default` is for an architecture whose table has no section of the kernel.
    """
    return int(lookup(kernel, key, architecture, {ROWS: default})[ROWS])


@functools.cache
def _find(kernel: str, key: str, architecture: str) -> Config | None:
    entries = table(nearest(architecture)).get(kernel, {})
    entry = entries.get(key) or entries.get("*")
    return entry and {name: value for name, value in entry.items() if name not in _NOTES}


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


def overridden() -> dict[str, Config]:
    """What `override` has set."""
    return dict(_override)


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
def table(architecture: str) -> Table:
    """The table of an architecture."""
    return parse((_folder() / f"{architecture}.toml").read_text(encoding="utf-8"), f"{architecture}.toml")


def place(architecture: str, section: str, key: str) -> str:
    """Where the table has what serves this key, for messages."""
    return f"{nearest(architecture)}.toml, section [{section}], key {key!r} or '*'"


def parse(text: str, file: str) -> Table:
    """The table that the text of a file holds.

    Raises:
        TableError: it is no TOML, or an entry is not what this version knows.
    """
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TableError(f"{file} is damaged: {error}") from None
    for section, entries in found.items():
        if not isinstance(entries, dict):
            raise TableError(f"{file}: {section} must be a section of entries, is {entries!r}")
        if "*" not in entries and not all(isinstance(entry, dict) and ORDER in entry for entry in entries.values()):
            raise TableError(f"{file}, section [{section}]: has no entry '*', for the calls that have none of their own")
        for key, entry in entries.items():
            fault = _fault(entry)
            if fault is not None:
                raise TableError(f"{file}, section [{section}], key {key!r}: {fault}")
    return found


def _fault(entry: Any) -> str | None:
    """What is wrong with an entry, or None."""
    if not isinstance(entry, dict):
        return f"must be an entry in braces, is {entry!r}"
    if not isinstance(entry.get(ORIGIN), str):
        return f"must have an origin, has {entry}"
    if ORDER not in entry:
        wrong = {name: value for name, value in entry.items() if name not in _NOTES and type(value) is not int}
        return f"must have integers for tile sizes, has {wrong}" if wrong else _fault_of_times(entry)
    order = entry[ORDER]
    if not isinstance(order, list) or not order or not all(isinstance(name, str) for name in order):
        return f"its order must be a list of backends, is {order!r}"
    if (fault := _fault_of_times(entry)) is not None:
        return fault
    unknown = sorted(set(entry) - {ORDER, TIMES, ORIGIN})
    return f"this version does not know {', '.join(unknown)}" if unknown else None


def _fault_of_times(entry: dict[str, Any]) -> str | None:
    times = entry.get(TIMES, {})
    if isinstance(times, dict) and all(type(time) in (int, float) for time in times.values()):
        return None
    return f"its times must be numbers by what was measured, are {times!r}"


def _folder() -> Any:
    return resources.files("hifuse_fast.backends") / "tables"


def _number(architecture: str) -> int:
    return int(re.sub(r"\D", "", architecture))


@functools.cache
def nearest(architecture: str) -> str:
    """The architecture whose table this one uses: its own, or the newest one before it."""
    known = architectures()
    return max((name for name in known if _number(name) <= _number(architecture)), key=_number, default=known[0])
