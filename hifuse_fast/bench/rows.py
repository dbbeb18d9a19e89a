"""One measurement is one row of `benchmarks/results/<device>.csv`; tables and pictures are made from these rows alone."""

from __future__ import annotations

import csv
import typing
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hifuse_fast.bench.timing import Timing
from hifuse_fast.files import writing

MISSING = "missing: "  #: how the note of a row begins whose engine cannot run here, for the reason that follows


@dataclass(frozen=True)
class Conditions:
    """What was the same for every row of one run."""

    date: str  #: ISO 8601, UTC
    commit: str  #: short hash, "+dirty" where measured sources differ from it, "unknown" outside a git checkout
    package: str
    torch: str
    python: str
    device: str  #: slug, the name of the results file
    threads: int
    isa: str  #: instruction set of the native library, "none" where there is no library


@dataclass(frozen=True)
class Verdict:
    """What the check of an engine's output says: whether it may be timed, its error, and what there is to note."""

    ok: bool
    error: float
    note: str = ""


@dataclass(frozen=True)
class Row(Conditions):
    """One engine on one case. Times are milliseconds `per` image or call. None means not measured."""

    suite: str  #: "network", "engines" or the op
    case: str
    engine: str
    dtype: str
    batch: int
    mode: str  #: "inference", "training", "forward" or "forward+backward"
    per: str  #: "image" or "call"
    ms_p20: float | None
    ms_p50: float | None
    ms_p80: float | None
    images_per_s: float | None
    gflop_per_s: float | None  #: of the arithmetic that the definition takes, two operations a multiply-add
    gb_per_s: float | None  #: of the bytes that must move
    ratio: float | None  #: p50 of the reference over p50 of this engine, in the same run
    floor_share: float | None  #: least time possible over p50
    peak_mib: float | None
    error: float | None  #: max|out - exact| / max|exact|
    note: str
    ready_s: float | None = None  #: from the eager network to the first output

    @property
    def key(self) -> tuple[str, str, str, str, int, str, int, str]:
        """A newer row replaces an older one of the same device if both have the same key."""
        return (self.suite, self.case, self.engine, self.dtype, self.batch, self.mode, self.threads, self.isa)

    @property
    def run(self) -> tuple[str, str, str, int, str]:
        """What the rows of one case have in common that were measured in turns."""
        return (self.date, self.case, self.dtype, self.batch, self.mode)

    @property
    def missing(self) -> bool:
        """Whether the engine cannot run here at all, which is no failure."""
        return self.note.startswith(MISSING)


def figures(
    timed: Timing | None,
    reference: Timing | None,
    *,
    batch: int,
    calls: int,
    flop: float,
    floor_s: float | None,
    moved: float | None = None,
) -> dict[str, Any]:
    """The columns of a Row that follow from the time of a call. All are None where there is no time.

    Args:
        timed: the time of this engine; None where its output was wrong.
        reference: the time of the engine that `ratio` is over, or None.
        batch: images in a call.
        calls: what a call is divided by for the milliseconds: `batch` where they are per image, 1 where they are per call.
        flop: floating-point operations of a call.
        floor_s: the least seconds that a call can take, or None.
        moved: bytes that a call must move, or None.
    """
    names = ("ms_p20", "ms_p50", "ms_p80", "images_per_s", "gflop_per_s", "gb_per_s", "ratio", "floor_share")
    if timed is None:
        return dict.fromkeys(names)
    seconds = timed.p50
    milliseconds = [1e3 * quantile / calls for quantile in (timed.p20, timed.p50, timed.p80)]
    gb_per_s = None if moved is None else moved / seconds / 1e9
    ratio = None if reference is None else reference.p50 / seconds
    share = None if floor_s is None else floor_s / seconds
    rates = (batch / seconds, flop / seconds / 1e9, gb_per_s, ratio, share)
    return dict(zip(names, (*milliseconds, *rates), strict=True))


COLUMNS = tuple(field.name for field in fields(Row))
_TYPES = typing.get_type_hints(Row)
_DIGITS = 4  # significant: the last one is already noise


def read(path: Path) -> list[Row]:
    """The rows of a results file; [] where there is no file.

    Raises:
        ValueError: the file is not such a table; the message names the file and the line.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a CSV file: {error}") from error
    if not lines or tuple(lines[0]) != COLUMNS:
        raise ValueError(f"{path} must begin with the columns {','.join(COLUMNS)}; move it away to start a new one")
    return [_parse(path, number, line) for number, line in enumerate(lines[1:], 2)]


def _parse(path: Path, number: int, line: list[str]) -> Row:
    if len(line) != len(COLUMNS):
        raise ValueError(f"{path}, line {number}: expected {len(COLUMNS)} columns, got {len(line)}")
    values: dict[str, object] = {}
    for name, text in zip(COLUMNS, line, strict=True):
        kind = _TYPES[name]
        try:
            values[name] = text if kind is str else int(text) if kind is int else float(text) if text else None
        except ValueError:
            raise ValueError(f"{path}, line {number}: {name} must be a number, got {text!r}") from None
    return Row(**values)  # type: ignore[arg-type]


def merge(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """The old rows, with each one that was measured anew replaced in its place. New cases come last."""
    rows = {row.key: row for row in old}
    rows.update({row.key: row for row in new})
    return list(rows.values())


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write the table at once or not at all, see `hifuse_fast.files`. Makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([_format(getattr(row, column)) for column in COLUMNS] for row in rows)


def update(path: Path, new: Iterable[Row]) -> list[Row]:
    """Merge `new` into the results file and return all its rows."""
    rows = merge(read(path), new)
    write(path, rows)
    return rows


def _format(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.{_DIGITS}g}" if isinstance(value, float) else str(value)
