"""HiFuse on the CPU in every engine that runs it: `python -m benchmarks.engines`, or `make bench-cpu`.

For each model, dtype and batch size the engines (`peers.py`) get ready one after the other, each in a process of its own
(`bench.worker`). Their logits are compared with the reference in float64: float32 within 1e-4 of the largest and with the same
classes, bfloat16 by the tolerance rule of `hifuse_fast.testing`, measured by eager PyTorch. A wrong engine gets no time; the
others then take turns. Memory is that of the process while the engine runs (`worker.Ready`); ready is the time from the eager
network in memory to the first output. The rows' `ratio` is over eager PyTorch, that of the tables over the product.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import click
import torch
from rich.console import Console
from torch import Tensor

from benchmarks import peers
from hifuse_fast import list_models, save_checkpoint
from hifuse_fast.bench import machine, network, options, rows, samples, table, timing, turns
from hifuse_fast.bench.network import DTYPES, Subject
from hifuse_fast.bench.rows import MISSING, Row
from hifuse_fast.bench.worker import Engine, FailedError, MissingError, Ready, Task, Worker

SUITE = "engines"
BASELINE = "eager"
REST_S = 0.06  # OpenMP's threads spin for 9 ms after a call, those of ONNX Runtime for 45
CPU = torch.device("cpu")


class Runner(Protocol):
    """What this bench needs of a `worker.Worker`."""

    @property
    def pid(self) -> int: ...
    def wait(self) -> Ready: ...
    def __call__(self) -> None: ...
    def close(self) -> None: ...


Start = Callable[[Engine, Task], Runner]


@dataclass(frozen=True)
class Outcome:
    """An engine before it is timed: what it said when it was ready, its error, and whether it may be timed."""

    ok: bool
    note: str
    error: float | None = None
    ready: Ready | None = None


def get_ready(runner: Runner, eager: Tensor, exact: Tensor) -> Outcome:
    """Wait for an engine and judge its logits against `exact` (float64) and `eager` (PyTorch's, in the engine's dtype)."""
    try:
        ready = runner.wait()
    except MissingError as reason:
        return Outcome(False, f"{MISSING}{reason}")
    except FailedError as reason:
        return Outcome(False, f"failed: {reason}")
    logits = torch.from_numpy(ready.logits).to(eager.dtype)
    check = network.check_logits(logits, eager, exact)
    same = eager.dtype != torch.float32 or logits.argmax(1).equal(exact.argmax(1))
    wrong = "wrong class" if check.ok and not same else ""
    preparing = "" if ready.preparing_mib is None else f"prepared in {ready.preparing_mib:.0f} MiB"
    note = ", ".join(filter(None, (ready.version, check.note, wrong, preparing)))
    return Outcome(check.ok and same, note, check.error, ready)


@dataclass(frozen=True)
class Bench:
    """What is the same for all cases: the engines by name, how one is started, seconds of timing a case, where news go."""

    engines: Mapping[str, Engine]
    start: Start
    budget_s: float
    tell: Callable[[str], object]

    def measure_model(self, subject: Subject, dtypes: Sequence[str], batch_sizes: Sequence[int]) -> Iterable[list[Row]]:
        """The rows of a model, case by case."""
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "weights.safetensors"
            save_checkpoint(subject.network, checkpoint)
            for dtype in dtypes:
                eager = network.reference_logits(subject.network, subject.pixels, DTYPES[dtype])
                peak = machine.arithmetic_peak(CPU, DTYPES[dtype])
                for batch in batch_sizes:
                    pixels = subject.pixels[:batch].numpy()
                    task = Task(subject.model, checkpoint, pixels, DTYPES[dtype], torch.get_num_threads())
                    self.tell(f"{subject.model} {dtype}, batch {batch}")
                    yield self.measure(subject, task, dtype, eager[:batch], peak)

    def measure(self, subject: Subject, task: Task, dtype: str, eager: Tensor, peak: float) -> list[Row]:
        """The rows of one case, an engine each; `peak` is the machine's FLOP/s."""
        batch = len(task.images)
        outcomes: dict[str, Outcome] = {}
        calls: dict[str, Runner] = {}
        with ExitStack() as stack:
            for name, engine in self.engines.items():
                runner = stack.enter_context(closing(self.start(engine, task)))
                outcome = outcomes[name] = get_ready(runner, eager, subject.exact[:batch])
                if outcome.ok:
                    calls[name] = runner
                self.tell(f"  {name}: {_news(outcome)}")
            with machine.Neighbours([runner.pid for runner in calls.values()]) as neighbours:
                timings = timing.interleave(calls, budget_s=self.budget_s, rest_s=REST_S) if calls else {}
        flop = 2.0 * subject.multiply_adds * batch
        common: dict[str, Any] = {
            **asdict(machine.conditions(CPU)),
            **{"suite": SUITE, "case": subject.model, "dtype": dtype, "batch": batch, "mode": "inference", "per": "image"},
        }
        found = []
        for name, outcome in outcomes.items():
            figures = rows.figures(
                timings.get(name), timings.get(BASELINE), batch=batch, calls=batch, flop=flop, floor_s=flop / peak
            )
            note = ", ".join(filter(None, (outcome.note, neighbours.note if outcome.ok else "")))
            ready = outcome.ready if outcome.ok else None
            memory, seconds = (ready.peak_mib, ready.seconds) if ready else (None, None)
            found.append(
                Row(**common, **figures, engine=name, peak_mib=memory, error=outcome.error, note=note, ready_s=seconds)
            )
        return found


def _news(outcome: Outcome) -> str:
    return f"ready after {outcome.ready.seconds:.1f} s, {outcome.note}" if outcome.ready else outcome.note


def keep(file: Path, found: Sequence[Row]) -> None:
    """Write the rows; that of a missing engine does not replace one that was measured elsewhere or before."""
    known = {row.key for row in rows.read(file) if not row.missing}
    rows.update(file, [row for row in found if not (row.missing and row.key in known)])


def run(
    models: Sequence[str],
    *,
    results: Path,
    dtypes: Sequence[str] = tuple(turns.DTYPES),
    batch_sizes: Sequence[int] = (1, 8),
    engines: Mapping[str, Engine] = peers.ENGINES,
    budget_s: float = 60.0,
    console: Console | None = None,
    start: Start = Worker,
) -> list[Row]:
    """Measure, write and show; the rows. Those of a case are written when it is done, because a run may take hours."""
    console = console or table.console()
    file = results / f"{machine.device_slug(CPU)}.csv"
    rows.read(file)  # a damaged one is found before the work
    pixels = samples.load(max(batch_sizes))[1]
    bench = Bench(engines, start, budget_s, lambda text: console.print(text, highlight=False))
    found: list[Row] = []
    for model in models:
        for case in bench.measure_model(network.make_subject(model, pixels), dtypes, batch_sizes):
            keep(file, case)
            found += case
    report(console, found)
    console.print(f"written: {file}", soft_wrap=True)
    return found


def report(console: Console, found: Sequence[Row]) -> None:
    """A table a model."""
    caption = (
        f"{table.describe(found[0])}. {table.PRODUCT} is: that many times as fast. Error: largest of the logits' against "
        "float64. Ready: from the eager network to the first output. Peak: resident memory of the engine's process while it "
        "runs, less that of a process that has imported torch. Floor: multiply-adds at the rate of the best matrix product."
    )
    for model in dict.fromkeys(row.case for row in found):
        mine = [row for row in found if row.case == model]
        console.print(table.terminal(mine, table.engines(mine), f"{model}, inference, 224 x 224", caption))
    if warning := table.busy(found):
        console.print(warning, style="yellow")


@click.command()
@click.option(
    "--models", default="hifuse_small", show_default=True, help="Comma-separated: hifuse_tiny, hifuse_small, hifuse_base."
)
@click.option("--batch", default="1,8", show_default=True, help="Images a call, comma-separated.")
@click.option("--dtypes", help=options.DTYPES_HELP)
@click.option("--engines", default=",".join(peers.ENGINES), help="Comma-separated.  [default: all]")
@click.option("--budget", type=click.FloatRange(0), default=60.0, show_default=True, help="Seconds of timing a case.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("benchmarks/results"), help="Folder of the rows.")
def main(*, models: str, batch: str, dtypes: str | None, engines: str, budget: float, output: Path) -> None:
    """Time HiFuse on the CPU in every engine that runs it. Compilers take minutes to get ready for each case."""
    chosen = options.names("--engines", engines, peers.ENGINES)
    found = run(
        options.names("--models", models, list_models()),
        results=output,
        dtypes=options.dtypes(dtypes, CPU),
        batch_sizes=options.batch_sizes(batch),
        engines={name: peers.ENGINES[name] for name in chosen},
        budget_s=budget,
    )
    bad = [row for row in found if row.ms_p50 is None and not row.missing]
    if bad:
        which = "; ".join(f"{row.engine} {row.case} {row.dtype} batch {row.batch}" for row in bad)
        raise click.ClickException(f"failed or wrong output, not timed: {which}")


if __name__ == "__main__":
    main()
