"""What the benchmarks of ops share: the engines of a case take turns, and its rows are shown and written.

A wrong engine is not timed. The floor is the larger of two times: the arithmetic at the rate of the best matrix product of this
run, and the bytes at its copy rate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import click
import torch
from rich.console import Console

import hifuse_fast
from hifuse_fast.backends.select import RUNS_ON
from hifuse_fast.bench import cuda, machine, rows, table, timing
from hifuse_fast.bench.rows import Row

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SM90A = "cuda sm_90a"  #: "cuda" by its kernels for sm_90a, whatever the table says
OWN = (*RUNS_ON, SM90A, "hifuse_fast")  #: the engines that are ours: a backend of kernels, or "auto"


class Case(Protocol):
    """What is the same for all engines."""

    @property
    def name(self) -> str:
        """The shape as the results file names it."""

    @property
    def batch(self) -> int: ...

    @property
    def dtype(self) -> str: ...

    @property
    def mode(self) -> str: ...

    @property
    def flop(self) -> float:
        """Operations of a call, two a multiply-add."""

    @property
    def moved(self) -> float:
        """Bytes that a call must move."""


@dataclass(frozen=True)
class Candidate:
    """An engine on a case: the call that is timed, and the verdict on its output."""

    call: timing.Call
    ok: bool
    error: float | None
    note: str = ""
    peak_mib: float | None = None  #: what was measured before, where it is not that of `call` (a CUDA graph has its own memory)
    ready_s: float | None = None  #: until its first output was there

    @property
    def missing(self) -> bool:
        """Whether the engine cannot run here, see `rows.Row`."""
        return self.note.startswith(rows.MISSING)


@dataclass(frozen=True)
class Limits:
    """What the machine reaches: FLOP/s by dtype, bytes a second of a copy."""

    peak: Mapping[str, float]
    bandwidth: float

    def floor(self, case: Case) -> float:
        """The least seconds a call can take."""
        return max(case.flop / self.peak[case.dtype], case.moved / self.bandwidth)


def limits(device: torch.device, dtypes: Mapping[str, torch.dtype] | None = None) -> Limits:
    """The limits of `device`, measured now, for `dtypes`; for None, the dtypes that are usual on it."""
    dtypes = dtypes or {name: DTYPES[name] for name in machine.usual_dtypes(device)}
    peak = {name: machine.arithmetic_peak(device, dtype) for name, dtype in dtypes.items()}
    return Limits(peak, machine.copy_bandwidth(device))


def require_native(device: torch.device, *ops: str) -> None:
    """Raise click.ClickException where the native kernel of one of `ops` cannot serve `device`."""
    for op in ops:
        why_not = hifuse_fast.info().ops[op].get(f"native {device.type}", "no such device")
        if why_not is not None:
            raise click.ClickException(f"the native kernel of {op} cannot serve {device.type}: {why_not}")


def measure(
    suite: str,
    case: Case,
    candidates: Mapping[str, Candidate],
    device: torch.device,
    *,
    limits: Limits,
    budget_s: float,
    baseline: str = "reference",
    per: str = "call",
) -> list[Row]:
    """Time the candidates that are right, in turns. Each gets a row: its ratio over `baseline`, and milliseconds `per` unit."""
    right = {name: candidate for name, candidate in candidates.items() if candidate.ok}
    calls = {name: candidate.call for name, candidate in right.items()}
    memory = {name: _peak_mib(candidate, device) for name, candidate in right.items()}
    with machine.Neighbours() as neighbours:
        timings = _time(calls, device, budget_s)
    common = {**asdict(machine.conditions(device)), "suite": suite, "case": case.name, "per": per}
    common |= {"dtype": case.dtype, "batch": case.batch, "mode": case.mode}
    work: dict[str, Any] = {
        "batch": case.batch,
        "calls": case.batch if per == "image" else 1,
        "flop": case.flop,
        "moved": case.moved,
        "floor_s": limits.floor(case),
    }
    found = []
    for name, candidate in candidates.items():
        figures = rows.figures(timings.get(name), timings.get(baseline), **work)
        failed = "" if candidate.ok or candidate.missing else "wrong output"
        note = ", ".join(filter(None, [candidate.note, failed, neighbours.note]))
        common |= {"engine": name, "error": candidate.error, "note": note, "ready_s": candidate.ready_s}
        found.append(Row(**common, **figures, peak_mib=memory.get(name)))
    return found


def _peak_mib(candidate: Candidate, device: torch.device) -> float | None:
    return machine.peak_memory(candidate.call, device) if candidate.peak_mib is None else candidate.peak_mib


def _time(calls: Mapping[str, timing.Call], device: torch.device, budget_s: float) -> dict[str, timing.Timing]:
    if not calls:  # all of them wrong
        return {}
    return timing.interleave(calls, budget_s=budget_s, warmup=3, timer=cuda.timer(device))


def report(console: Console, found: Sequence[Row], title: str, output: Path | None) -> None:
    """Show the rows, and write them into the folder `output` where one is given.

    Raises:
        click.ClickException: an engine was wrong.
    """
    show(console, found, title)
    if output is not None:
        file = output / f"{found[0].device}.csv"
        rows.update(file, found)
        console.print(f"written: {file}", soft_wrap=True)
    wrong = [f"{row.engine} {row.case} {row.dtype} {row.mode}" for row in found if row.ms_p50 is None and not row.missing]
    if wrong:
        raise click.ClickException("wrong output, not timed: " + "; ".join(wrong))


def show(console: Console, found: Sequence[Row], title: str) -> None:
    """Print the table of all rows, then for each peer the worst and the best case of our engine."""
    ours = {case: best_own(group) for case, group in by_case(found).items()}

    def ratio(row: Row) -> str:
        own = ours[key(row)]
        return "-" if not (row.ms_p50 and own and own.ms_p50) else f"{row.ms_p50 / own.ms_p50:.2f}x"

    columns: list[table.Column] = [
        ("case", lambda row: f"{row.case} B{row.batch}"),
        ("mode", lambda row: row.mode.replace("forward", "fwd").replace("backward", "bwd")),
        ("dtype", lambda row: row.dtype),
        ("engine", lambda row: row.engine),
        ("ms p20 / p50 / p80", table.times),
        ("GFLOP/s", lambda row: table.number(row.gflop_per_s)),
        ("GB/s", lambda row: table.number(row.gb_per_s)),
        ("of floor", lambda row: table.share(row.floor_share)),
        ("ours is", ratio),
        ("error", lambda row: "-" if row.error is None else f"{row.error:.1e}"),
    ]
    console.print(table.terminal(found, columns, title, table.describe(found[0])))
    for line in summary(found):
        console.print(line)
    if warning := table.busy(found):
        console.print(warning, style="yellow")


def key(row: Row) -> tuple[str, int, str, str]:
    """What the engines of one case have in common."""
    return (row.case, row.batch, row.dtype, row.mode)


def by_case(found: Iterable[Row]) -> dict[tuple[str, int, str, str], list[Row]]:
    """The rows of each case."""
    cases: dict[tuple[str, int, str, str], list[Row]] = {}
    for row in found:
        cases.setdefault(key(row), []).append(row)
    return cases


def best_own(rows_of_case: Iterable[Row]) -> Row | None:
    """Of the rows of a case the fastest one of ours; one without a time where none has any."""
    own = [row for row in rows_of_case if row.engine in OWN]
    return min(own, key=lambda row: math.inf if row.ms_p50 is None else row.ms_p50, default=None)


def summary(found: Sequence[Row]) -> list[str]:
    """For each dtype, mode and peer: how much faster the best of our engines is, in its worst and its best case."""
    ours = {case: best_own(group) for case, group in by_case(found).items()}
    mine = {case: row for case, row in ours.items() if row is not None and row.ms_p50}
    dtypes, modes, engines = (dict.fromkeys(getattr(row, name) for row in found) for name in ("dtype", "mode", "engine"))
    lines = []
    for dtype, mode, peer in itertools.product(dtypes, modes, [name for name in engines if name not in OWN]):
        group = [row for row in found if (row.dtype, row.mode, row.engine) == (dtype, mode, peer)]
        ratios = sorted(
            (row.ms_p50 / mine[key(row)].ms_p50, f"{row.case} B{row.batch}", mine[key(row)].engine)  # type: ignore[operator]
            for row in group
            if row.ms_p50 and key(row) in mine
        )
        if ratios:
            (worst, where, own), (best, _, _) = ratios[0], ratios[-1]
            lines.append(f"{dtype} {mode}: {own} is {worst:.2f}x (worst: {where}) to {best:.2f}x as fast as {peer}")
    return lines
