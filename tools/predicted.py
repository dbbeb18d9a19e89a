"""Predicted beside measured: the times of benchmarks/predicted.toml, and the rows of `benchmarks.gpu_ops` for the same."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hifuse_fast.bench import table
from hifuse_fast.bench.rows import Row

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "predicted.toml"
DEVICE, DTYPE, BATCH = "nvidia-h200", "bfloat16", 64  #: that the predictions are for
OFF = 1.5  #: times as long or as short as predicted, from which on a prediction was wrong
HEAD = ["call", "engine", "mode", "predicted, us", "measured, us", "measured is"]


@dataclass(frozen=True)
class Prediction:
    """The microseconds that a call was predicted to take by an engine, and those that it took."""

    call: str
    engine: str
    mode: str
    predicted: float
    measured: float | None = None

    @property
    def ratio(self) -> float | None:
        """Measured over predicted."""
        return None if self.measured is None else self.measured / self.predicted

    @property
    def is_off(self) -> bool:
        """Whether the time is another one than was predicted, in either direction."""
        return self.ratio is not None and not 1 / OFF <= self.ratio <= OFF

    def cells(self) -> list[str]:
        """The line of the table, see `HEAD`."""
        measured = "not yet" if self.measured is None else table.number(self.measured)
        ratio = table.factor(self.ratio) + (", off" if self.is_off else "")
        return [self.call, self.engine, self.mode, table.number(self.predicted), measured, ratio]


def predictions(found: Sequence[Row]) -> list[Prediction]:
    """Those of the file, each with the time of its row where there is one."""
    times = {
        (row.case, row.engine, row.mode): 1e3 * row.ms_p50
        for row in found
        if (row.suite, row.device, row.dtype, row.batch) == ("gpu_ops", DEVICE, DTYPE, BATCH) and row.ms_p50 is not None
    }
    engines = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return [
        Prediction(call, engine, mode, us, times.get((call, engine, mode)))
        for engine, calls in engines.items()
        for call, modes in calls.items()
        for mode, us in modes.items()
    ]


def page(found: Sequence[Row]) -> str:
    """The table, and under it how many there are and the names of those that are off."""
    all_of_them = predictions(found)
    measured = [each for each in all_of_them if each.measured is not None]
    off = ", ".join(f"{each.call} ({each.engine}, {each.mode})" for each in measured if each.is_off)
    told = f"{DEVICE}, {DTYPE}, {BATCH} images; {len(measured)} of {len(all_of_them)} are measured."
    if measured:
        told += f" Off by more than {OFF} times: {off or 'none'}."
    return f"{table.markdown(HEAD, [each.cells() for each in all_of_them])}\n\n{told}\n"
