"""Launches that are kept instead of run, of whatever backend: to compile them ahead, or to see what a call would launch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hifuse_fast.backends import tables


@dataclass
class Record:
    """The launches within a `recording`, as if on a GPU of `architecture`; each backend keeps its own kind of them."""

    architecture: str
    launches: list[Any] = field(default_factory=list)


_record: Record | None = None


def active() -> bool:
    """Whether launches are recorded."""
    return _record is not None


def keep(launch: Any) -> bool:
    """Whether launches are recorded; then this one is kept, and must not run."""
    if _record is not None:
        _record.launches.append(launch)
    return active()


@contextlib.contextmanager
def recording(architecture: str) -> Iterator[Record]:
    """Within the block, launches are kept instead of run. It serves one thread. Calls may be on the meta device."""
    global _record  # noqa: PLW0603
    before, _record = _record, Record(architecture)
    try:
        with tables.assume(architecture):
            yield _record
    finally:
        _record = before
