"""Options that the benchmarks share: lists separated by commas."""

from __future__ import annotations

from collections.abc import Iterable

import click
import torch

from hifuse_fast.bench import machine
from hifuse_fast.bench.turns import DTYPES

DTYPES_HELP = "Comma-separated.  [default: float32, and bfloat16 where PyTorch has kernels for it]"


def names(option: str, text: str, known: Iterable[str]) -> list[str]:
    """The names in `text`, in the order of the known ones.

    Raises:
        click.UsageError: one is not known.
    """
    chosen, known = [name.strip() for name in text.split(",")], list(known)
    if not set(chosen) <= set(known):
        raise click.UsageError(f"{option} must be of {','.join(known)}, got {text!r}")
    return [name for name in known if name in chosen]


def dtypes(text: str | None, device: torch.device, known: Iterable[str] = tuple(DTYPES)) -> list[str]:
    """The dtypes in `text`, each of `known`. For None, the usual ones of the device.

    Raises:
        click.UsageError: one is not known.
    """
    return list(machine.usual_dtypes(device)) if text is None else names("--dtypes", text, known)


def batch_sizes(text: str) -> list[int]:
    """The batch sizes in `text`.

    Raises:
        click.UsageError: one is no number of at least 1.
    """
    found = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in found):
        raise click.UsageError(f"--batch must be numbers of at least 1, got {text!r}")
    return [int(part) for part in found]
