"""Every call of the ops at 224 x 224, and two whole blocks, on a CUDA device against peers: `python -m benchmarks.gpu_ops`.

Engines: the reference, eager; `compile`, torch.compile (max-autotune) of the reference; for window attention also `sdpa` (one
additive mask) and `flex` (FlexAttention, compiled with all around it); ours, `triton` for an op and `hifuse_fast` (backend
"auto") for a block. Each is checked first, outputs and gradients, by the tolerance rule of `hifuse_fast.testing`; then they
take turns as CUDA graphs, timed by events on the device, from a cold cache. A peer that fails is named in its note, an engine
that cannot be captured is called as it is. The floor is the larger of the products over the best matrix product of this run,
and of the bytes over its copy rate. Rows are written case by case; without a CUDA device nothing is measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import torch
from rich.console import Console
from torch import Tensor

from benchmarks import options, turns
from benchmarks.gpu_subjects import Function, Inputs, Subject, engines, subjects
from benchmarks.turns import Candidate
from hifuse_fast.bench import cuda, machine, rows, table
from hifuse_fast.bench.rows import Row
from hifuse_fast.gpu.calls import DTYPES, MODES
from hifuse_fast.testing import errors, relative_error

SUITE = "gpu_ops"


@dataclass(frozen=True)
class Case:
    """One call or block, batch size, dtype and mode."""

    subject: Subject
    batch: int
    dtype: str
    mode: str

    @property
    def name(self) -> str:
        """As the results file names it."""
        return self.subject.name

    @property
    def flop(self) -> float:
        """Operations of the products."""
        return self.subject.flop(self.batch, self.mode)

    @property
    def moved(self) -> float:
        """Bytes that must move."""
        return self.subject.moved(self.batch, self.mode, DTYPES[self.dtype].itemsize)


def all_cases(names: str, batches: Iterable[int], dtypes: Iterable[str], modes: Iterable[str]) -> list[Case]:
    """The cases of the subjects that have one of the comma-separated `names` in theirs, the outer loop over batch and dtype."""
    wanted = [name.strip() for name in names.split(",")]
    found = [subject for subject in subjects() if any(name in subject.name for name in wanted)]
    modes, dtypes = list(modes), list(dtypes)
    return [Case(s, batch, dtype, mode) for batch in batches for dtype in dtypes for s in found for mode in modes]


def run(function: Function, inputs: Inputs, grad: Tensor | None) -> list[Tensor]:
    """The call that is timed: the output, and where `grad` is given the gradient of each input."""
    if grad is None:
        with torch.no_grad():
            return [function(inputs)]
    out = function(inputs)
    return [out.detach(), *torch.autograd.grad(out, list(inputs.values()), grad)]


def measure(
    case: Case, chosen: Sequence[str] | None, device: torch.device, *, limits: turns.Limits, budget_s: float
) -> list[Row]:
    """Check, then time in turns; a row an engine."""
    dtype = DTYPES[case.dtype]
    inputs = case.subject.inputs(case.batch, dtype, device)
    grad = None if case.mode == "forward" else case.subject.gradient(case.batch, dtype, device)
    builders = engines(case.subject)
    reference = builders["reference"](case.subject, case.batch, device)
    wide = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    exact = run(reference, wide, None if grad is None else grad.double())
    eager = run(reference, inputs, grad)
    candidates = {}
    for name, build in builders.items():
        if chosen is None or name in chosen:
            torch.compiler.reset()
            try:
                function = build(case.subject, case.batch, device)
                candidates[name] = _candidate(partial(run, function, inputs, grad), eager, exact, device)
            except Exception as error:  # whatever a peer fails with is its result; ours must not
                reason = _first_line(error) if name in turns.OWN else f"{rows.MISSING}{_first_line(error)}"
                candidates[name] = Candidate(lambda: None, False, None, reason)
    return turns.measure(SUITE, case, candidates, device, limits=limits, budget_s=budget_s)


def _candidate(call: partial[list[Tensor]], eager: list[Tensor], exact: list[Tensor], device: torch.device) -> Candidate:
    """The engine, checked, and as a CUDA graph where that is possible."""
    begin = time.perf_counter()
    actual = call()
    note = f"first call {time.perf_counter() - begin:.1f} s"
    ok = all(errors(a, p, e).ok for a, p, e in zip(actual, eager, exact, strict=True))
    error = max(relative_error(a, e) for a, e in zip(actual, exact, strict=True))
    del actual
    if not ok or device.type != "cuda":
        return Candidate(call, ok, error, note)
    try:
        return Candidate(cuda.graphed(call), ok, error, note, plain=call)
    except RuntimeError as failure:
        return Candidate(call, ok, error, f"{note}, no CUDA graph: {_first_line(failure)}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]


def measured(found: Iterable[Row], commit: str) -> set[tuple[str, int, str, str]]:
    """The cases that have rows of this commit."""
    return {turns.key(row) for row in found if row.suite == SUITE and row.commit == commit}


def run_cases(
    cases: Sequence[Case],
    chosen: Sequence[str] | None,
    device: torch.device,
    *,
    output: Path,
    budget_s: float,
    limit_s: float,
    resume: bool,
    console: Console,
) -> tuple[list[Row], int]:
    """The rows, each case's written before the next one begins; and how many cases were left when the time was up."""
    end = time.monotonic() + limit_s
    now = machine.conditions(device)
    file = output / f"{now.device}.csv"
    done = measured(rows.read(file), now.commit) if resume else set()
    todo = [case for case in cases if (case.name, case.batch, case.dtype, case.mode) not in done]
    console.print(f"{len(todo)} of {len(cases)} cases to measure", highlight=False)
    limits = turns.limits(device, {name: DTYPES[name] for name in dict.fromkeys(case.dtype for case in todo)})
    found: list[Row] = []
    for i, case in enumerate(todo):
        if time.monotonic() > end:
            return found, len(todo) - i
        new = measure(case, chosen, device, limits=limits, budget_s=budget_s)
        rows.update(file, new)
        found += new
        times = ", ".join(f"{row.engine} {table.times(row)}" for row in new)
        console.print(f"{case.name} B{case.batch} {case.dtype} {case.mode}: ms {times}", highlight=False)
    return found, 0


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("benchmarks/results"), help="Folder of the rows.")
@click.option("--calls", default="", help="Comma-separated parts of names, as window_attention or block; all if empty.")
@click.option("--engines", "chosen", default="", help="Comma-separated; all if empty. The reference is always run.")
@click.option("--batch", default="64,1", show_default=True)
@click.option("--dtypes", default="bfloat16,float16", show_default=True)
@click.option("--modes", default=",".join(MODES), show_default=True)
@click.option("--budget", type=click.FloatRange(0), default=0.5, show_default=True, help="Seconds of timing a case.")
@click.option("--limit", type=click.FloatRange(0), default=1e9, help="Seconds after which no case is begun.  [default: none]")
@click.option("--resume", is_flag=True, help="Leave out cases that have rows of this commit.")
def main(
    *, output: Path, calls: str, chosen: str, batch: str, dtypes: str, modes: str, budget: float, limit: float, resume: bool
) -> None:
    """Time the ops and blocks on a CUDA device against their peers."""
    console = table.console()
    known = dict.fromkeys(name for subject in subjects() for name in engines(subject))
    only = options.names("--engines", f"reference,{chosen}", known) if chosen else None
    cases = all_cases(
        calls, options.batch_sizes(batch), options.names("--dtypes", dtypes, DTYPES), options.names("--modes", modes, MODES)
    )  # fmt: skip
    if not cases:
        raise click.UsageError(f"--calls: nothing has {calls!r} in its name")
    if not torch.cuda.is_available():
        console.print(f"No CUDA device: nothing is measured. On one, these {len(cases)} cases would be:", highlight=False)
        for name in dict.fromkeys(case.name for case in cases):
            console.print(f"  {name}", highlight=False)
        return
    found, left = run_cases(
        cases, only, torch.device("cuda"), output=output, budget_s=budget, limit_s=limit, resume=resume, console=console
    )  # fmt: skip
    if left:
        console.print(f"time is up: {left} cases left for --resume", style="yellow", highlight=False)
    if found:
        turns.report(console, found, "ops on a CUDA device", None)


if __name__ == "__main__":
    main()
