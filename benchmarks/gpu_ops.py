"""Every call of the ops at 224 x 224, frozen and with gradients, and whole blocks, on a CUDA device against peers.

    python -m benchmarks.gpu_ops

Engines: the reference, eager; `compile`, torch.compile (max-autotune) of the reference; for window attention also `sdpa` (one
additive mask) and `flex` (FlexAttention, compiled with all around it); ours, for an op each backend that has kernels of it on a
GPU, for a block with gradients `hifuse_fast` (backend "auto"), for the frozen MLP and mixer also `cuda sm_90a`. What is frozen
has no compiled peer. Each engine is checked first, outputs and gradients, by the tolerance rule of
`hifuse_fast.testing`; then they take turns as CUDA graphs, timed by events on the device, from a cold cache. A peer that fails
is named in its note, an engine that cannot be captured is called as it is. The floor is the larger of the products over the
best matrix product of this run, and of the bytes over its copy rate. Rows are written case by case; without a CUDA device
nothing is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import torch
from torch import Tensor

from benchmarks.gpu_subjects import Function, Inputs, Subject, engines, subjects
from hifuse_fast.bench import cases, options, turns
from hifuse_fast.bench.cases import Ready, Suite
from hifuse_fast.bench.rows import Row, Verdict
from hifuse_fast.testing import errors, relative_error
from hifuse_fast.tuning.calls import DTYPES, MODES

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
    return [
        Case(s, batch, dtype, mode) for batch in batches for dtype in dtypes for s in found for mode in modes if mode in s.modes
    ]


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

    def ready(name: str) -> Ready[list[Tensor]]:
        return Ready(partial(run, builders[name](case.subject, case.batch, device), inputs, grad))

    candidates = {
        name: cases.candidate(partial(ready, name), partial(judge, eager, exact), device, own=name in turns.OWN)
        for name in chosen_engines(case, chosen)
    }
    return turns.measure(SUITE, case, candidates, device, limits=limits, budget_s=budget_s)


def judge(eager: list[Tensor], exact: list[Tensor], actual: list[Tensor]) -> Verdict:
    """By the tolerance rule, output and gradients."""
    ok = all(errors(a, p, e).ok for a, p, e in zip(actual, eager, exact, strict=True))
    return Verdict(ok, max(relative_error(a, e) for a, e in zip(actual, exact, strict=True)))


def chosen_engines(case: Case, chosen: Sequence[str] | None) -> list[str]:
    """The engines of the case that were chosen, all for None."""
    return [name for name in engines(case.subject) if chosen is None or name in chosen]


@click.command()
@click.option("--calls", default="", help="Comma-separated parts of names, as window_attention or block; all if empty.")
@click.option("--engines", "chosen", default="", help="Comma-separated; all if empty. The reference is always run.")
@cases.options(batch="64,1", modes=MODES, budget=0.5)
def main(
    *, calls: str, chosen: str, output: Path, batch: str, dtypes: str, modes: str, budget: float, limit: float, resume: bool
) -> None:
    """Time the ops and blocks on a CUDA device against their peers."""
    known = dict.fromkeys([*(name for subject in subjects() for name in engines(subject)), *turns.OWN])
    only = options.names("--engines", f"reference,{chosen}", known) if chosen else None
    found = all_cases(
        calls, options.batch_sizes(batch), options.names("--dtypes", dtypes, DTYPES), options.names("--modes", modes, MODES)
    )  # fmt: skip
    if not found:
        raise click.UsageError(f"--calls: nothing has {calls!r} in its name")
    suite(only, budget).main(found, output=output, limit=limit, resume=resume)


def suite(chosen: Sequence[str] | None, budget_s: float) -> Suite[Case]:
    """The benchmark of these engines, with `budget_s` seconds of timing a case."""
    return Suite(
        SUITE,
        "ops on a CUDA device",
        lambda case: chosen_engines(case, chosen),
        lambda case, device, limits: measure(case, chosen, device, limits=limits, budget_s=budget_s),
    )


if __name__ == "__main__":
    main()
