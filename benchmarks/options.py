"""Options that the benchmarks share: lists separated by commas."""

from __future__ import annotations

from collections.abc import Iterable

import click


def names(option: str, text: str, known: Iterable[str]) -> list[str]:
    """The names in `text`, in the order of the known ones.

    Raises:
        click.UsageError: one is not known.
    """
    chosen, known = [name.strip() for name in text.split(",")], list(known)
    if not set(chosen) <= set(known):
        raise click.UsageError(f"{option} must be of {','.join(known)}, got {text!r}")
    return [name for name in known if name in chosen]


def batch_sizes(text: str) -> list[int]:
    """The batch sizes in `text`.

    Raises:
        click.UsageError: one is no number of at least 1.
    """
    found = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in found):
        raise click.UsageError(f"--batch must be numbers of at least 1, got {text!r}")
    return [int(part) for part in found]
