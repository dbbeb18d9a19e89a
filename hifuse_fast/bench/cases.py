"""What the benchmarks on a CUDA device share. An engine gets ready, is checked, and becomes a CUDA graph; cases run one by one.

Rows are written case by case. So a run that is cut off keeps what it has, and the next one goes on (`resume`).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar, cast

import click
import torch
from rich.console import Console

from hifuse_fast.bench import cuda, machine, rows, table, turns
from hifuse_fast.bench.network import DTYPES
from hifuse_fast.bench.rows import Row, Verdict
from hifuse_fast.bench.turns import Candidate

Output = TypeVar("Output")
AnyCase = TypeVar("AnyCase", bound=turns.Case)


@dataclass(frozen=True)
class Ready(Generic[Output]):
    """An engine that is ready for its first call."""

    call: Callable[[], Output]
    graphed: bool = True  #: whether the bench puts the call into a CUDA graph; an engine that has graphs of its own says False
    held_mib: float = 0.0  #: weights that it holds besides
    fresh: Callable[[], Callable[[], object]] | None = None  #: makes a call that allocates all, where a second `call` does not


def candidate(
    build: Callable[[], Ready[Output]], judge: Callable[[Output], Verdict], device: torch.device, *, own: bool
) -> Candidate:
    """Build an engine, check its output, measure its memory, make it a CUDA graph where that is possible, and check it again.

    Args:
        build: makes the engine. The time until its first output is there is the row's `ready_s`.
        judge: checks its output.
        device: where it runs.
        own: whether it is ours. A peer that fails is missing; an engine of ours that fails is wrong.
    """
    begin = time.perf_counter()
    try:
        ready = build()
        verdict = judge(ready.call())  # which reads it, so waits for it
        ready_s = time.perf_counter() - begin
        if not verdict.ok:
            return Candidate(ready.call, False, verdict.error, verdict.note, ready_s=ready_s)
        allocating = ready.fresh() if ready.fresh else ready.call
        rise = machine.peak_memory(allocating, device)  # before the capture: a graph has memory of its own
        del allocating
        call, note = _captured(ready, device)
        call()  # an engine with graphs of its own captures one at its second call
        verdict = judge(call())
    except Exception as error:  # whatever a peer fails with is its result
        return Candidate(lambda: None, False, None, ("" if own else rows.MISSING) + _first_line(error))
    peak = None if rise is None else rise + ready.held_mib
    note = ", ".join(filter(None, (verdict.note, note)))
    return Candidate(call, verdict.ok, verdict.error, note, peak_mib=peak, ready_s=ready_s)


def _captured(ready: Ready[Output], device: torch.device) -> tuple[Callable[[], Output], str]:
    """The call that is timed, and the reason where it is no CUDA graph but should be one."""
    if not ready.graphed or device.type != "cuda":
        return ready.call, ""
    try:
        return cast(Callable[[], Output], cuda.graphed(ready.call)), ""
    except RuntimeError as failure:
        return ready.call, f"no CUDA graph: {_first_line(failure)}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]


def clear(device: torch.device) -> None:
    """Forget what earlier cases compiled and held."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measured(found: Iterable[Row], suite: str, commit: str) -> dict[tuple[str, int, str, str], set[str]]:
    """The engines of each case that have rows of this commit."""
    done: dict[tuple[str, int, str, str], set[str]] = {}
    for row in found:
        if row.suite == suite and row.commit == commit:
            done.setdefault(turns.key(row), set()).add(row.engine)
    return done


@dataclass(frozen=True)
class Suite(Generic[AnyCase]):
    """A benchmark: the name of its suite, the title of its table, the engines of a case, and how a case is measured."""

    name: str
    title: str
    engines: Callable[[AnyCase], Sequence[str]]  #: those that were chosen
    measure: Callable[[AnyCase, torch.device, turns.Limits], list[Row]]

    def run_cases(
        self, cases: Sequence[AnyCase], device: torch.device, *, output: Path, limit_s: float, resume: bool, console: Console
    ) -> tuple[list[Row], int]:
        """Measure the cases, and write the rows of each before the next begins. Return them, and how many cases were left."""
        end = time.monotonic() + limit_s
        now = machine.conditions(device)
        file = output / f"{now.device}.csv"
        done = measured(rows.read(file), self.name, now.commit) if resume else {}
        todo = [case for case in cases if not set(self.engines(case)) <= done.get(_key(case), set())]
        console.print(f"{len(todo)} of {len(cases)} cases to measure", highlight=False)
        limits = turns.limits(device, {name: DTYPES[name] for name in dict.fromkeys(case.dtype for case in todo)})
        found: list[Row] = []
        for i, case in enumerate(todo):
            if time.monotonic() > end:
                return found, len(todo) - i
            clear(device)
            new = self.measure(case, device, limits)
            rows.update(file, new)
            found += new
            times = ", ".join(f"{row.engine} {table.times(row)}" for row in new)
            console.print(f"{case.name} B{case.batch} {case.dtype} {case.mode}: ms {times}", highlight=False)
        return found, 0

    def main(self, cases: Sequence[AnyCase], *, output: Path, limit: float, resume: bool) -> None:
        """Measure on the CUDA device and report. Without one, say what would be measured.

        Raises:
            click.ClickException: an engine of ours was wrong or failed.
        """
        console = table.console()
        if not torch.cuda.is_available():
            console.print(f"No CUDA device: nothing is measured. On one, these {len(cases)} cases would be:", highlight=False)
            for name in dict.fromkeys(case.name for case in cases):
                console.print(f"  {name}", highlight=False)
            return
        device = torch.device("cuda")
        found, left = self.run_cases(cases, device, output=output, limit_s=limit, resume=resume, console=console)
        if left:
            console.print(f"time is up: {left} cases left for --resume", style="yellow", highlight=False)
        if found:
            turns.report(console, found, self.title, None)


def _key(case: turns.Case) -> tuple[str, int, str, str]:
    """As `turns.key` of its rows."""
    return (case.name, case.batch, case.dtype, case.mode)


def options(*, batch: str, modes: Sequence[str], budget: float) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options of such a benchmark: --output --batch --dtypes --modes --budget --limit --resume."""
    made = [
        click.option(
            "--output", type=click.Path(path_type=Path), default=Path("benchmarks/results"), help="Folder of the rows."
        ),
        click.option("--batch", default=batch, show_default=True),
        click.option("--dtypes", default="bfloat16,float16", show_default=True),
        click.option("--modes", default=",".join(modes), show_default=True),
        click.option("--budget", type=click.FloatRange(0), default=budget, show_default=True, help="Seconds of timing a case."),
        click.option(
            "--limit", type=click.FloatRange(0), default=1e9, help="Seconds after which no case is begun.  [default: none]"
        ),
        click.option("--resume", is_flag=True, help="Leave out cases that have rows of this commit."),
    ]

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(made):
            command = option(command)
        return command

    return add
