"""HiFuse on the CPU in every engine that runs it: `python -m benchmarks.engines`, or `make bench-cpu`.

For each model, dtype and batch size the engines (`peers.py`) get ready one after the other, each in a process of its own
(`bench.worker`). Their logits are compared with the reference in float64: float32 within 1e-4 of the largest and with the same
classes, bfloat16 by the tolerance rule of `hifuse_fast.testing`, measured by eager PyTorch. A wrong engine gets no time; the
others then take turns.

Engines in int8 (`peers.INT8` in their name) take turns with those of the dtype that serves the CPU best otherwise, in rows of
the dtype "int8". All are calibrated on the same samples (`peers.calibration`). The logits of one are right where their error,
root mean square, is at most a tenth of their spread: of the root mean square of an image's exact logits about their mean. That
is twice what our calibration allows all parts together, which are other images. Random weights say nothing of classes: whether
int8 keeps them is judged by `benchmarks/int8.py`.

An engine that is given a graph gets two, the official network's and ours (`peers.OWN_GRAPH`), in a process each: the row is
that of the faster one, and says which. With `--neighbours` they take turns beside that many processes that compute all the
time, in rows of the suite "busy".

Memory is that of the process while the engine runs (`worker.Ready`); ready is the time from the eager network in memory to the
first output. The rows' `ratio` is over eager PyTorch, that of the tables over the product.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import click
import torch
from rich.console import Console
from torch import Tensor

from benchmarks import peers
from benchmarks.peers import INT8
from hifuse_fast import list_models, save_checkpoint
from hifuse_fast.bench import machine, network, options, rows, samples, table, timing, turns
from hifuse_fast.bench.network import DTYPES, Subject
from hifuse_fast.bench.rows import MISSING, Row, Verdict
from hifuse_fast.bench.worker import Engine, FailedError, MissingError, Ready, Task, Worker
from hifuse_fast.inference.calibrate import ALLOWED, differences, spread_of
from hifuse_fast.testing import relative_error

SUITE = "engines"
BUSY_SUITE = "busy"
OWN_GRAPH = " on our graph"  #: behind the name of an engine while it is measured
INT8_ERROR = 2 * ALLOWED  #: of logits, root mean square, in units of their spread
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
# It ends with the process that started it.
NEIGHBOUR = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(10**6): pass"


@dataclass(frozen=True)
class Outcome:
    """An engine before it is timed: what it said when it was ready, its error, and whether it may be timed."""

    ok: bool
    note: str
    error: float | None = None
    ready: Ready | None = None


def get_ready(runner: Runner, eager: Tensor, exact: Tensor, *, int8: bool = False) -> Outcome:
    """Wait for an engine and judge its logits against `exact` (float64) and `eager` (PyTorch's, in the engine's dtype).

    In int8, which PyTorch has not, they are judged against `exact` alone.
    """
    try:
        ready = runner.wait()
    except MissingError as reason:
        return Outcome(False, f"{MISSING}{reason}")
    except FailedError as reason:
        return Outcome(False, f"failed: {reason}")
    logits = torch.from_numpy(ready.logits).to(torch.float32 if int8 else eager.dtype)
    check = check_int8(logits, exact) if int8 else network.check_logits(logits, eager, exact)
    same = int8 or eager.dtype != torch.float32 or logits.argmax(1).equal(exact.argmax(1))
    wrong = "wrong class" if check.ok and not same else ""
    preparing = "" if ready.preparing_mib is None else f"prepared in {ready.preparing_mib:.0f} MiB"
    note = ", ".join(filter(None, (ready.version, ready.note, check.note, wrong, preparing)))
    return Outcome(check.ok and same, note, check.error, ready)


def check_int8(logits: Tensor, exact: Tensor) -> Verdict:
    """Judge logits of products in int8, see the top of this file."""
    changed, error, _, _ = differences(logits, exact)
    share = error / spread_of(exact)
    ok = share <= INT8_ERROR
    same = f"top-1 {len(exact) - changed}/{len(exact)}"
    note = f"{same}, off by {share:.1%} of the logits' spread{'' if ok else ', wrong output'}"
    return Verdict(ok, relative_error(logits, exact), note)


def cases(dtypes: Sequence[str], engines: Mapping[str, Engine]) -> dict[str, dict[str, Engine]]:
    """The engines of each dtype; those in int8 are with those of the dtype that serves the CPU best otherwise."""
    others = {name: engine for name, engine in engines.items() if INT8 not in name}
    found = {dtype: others for dtype in dtypes if dtype != "int8"}
    if "int8" in dtypes:
        found[machine.usual_dtypes(CPU)[-1]] = dict(engines)
    return found


@dataclass(frozen=True)
class Bench:
    """What is the same for all cases: the engines by name, how one is started, seconds of timing a case, where news go.

    `neighbours`: beside how many processes that compute all the time; None where the machine is to be quiet.
    """

    engines: Mapping[str, Engine]
    start: Start
    budget_s: float
    tell: Callable[[str], object]
    neighbours: Sequence[int] | None = None

    def measure_model(self, subject: Subject, dtypes: Sequence[str], batch_sizes: Sequence[int]) -> Iterable[list[Row]]:
        """The rows of a model, case by case. Those of a dtype that is not asked for are there to compare with."""
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "weights.safetensors"
            save_checkpoint(subject.network, checkpoint)
            for dtype, engines in cases(dtypes, self.engines).items():
                bench = dataclasses.replace(self, engines=engines)
                eager = network.reference_logits(subject.network, subject.pixels, DTYPES[dtype])
                peak = machine.arithmetic_peak(CPU, DTYPES[dtype])
                for batch in batch_sizes:
                    pixels = subject.pixels[:batch].numpy()
                    task = Task(subject.model, checkpoint, pixels, DTYPES[dtype], torch.get_num_threads())
                    self.tell(f"{subject.model} {dtype}, batch {batch}")
                    yield bench.measure(subject, task, dtype, eager[:batch], peak)

    def measure(self, subject: Subject, task: Task, dtype: str, eager: Tensor, peak: float) -> list[Row]:
        """The rows of one case, an engine each; `dtype` is that of engines not in int8, `peak` the FLOP/s in it."""
        batch = len(task.images)
        outcomes: dict[str, Outcome] = {}
        calls: dict[str, Runner] = {}
        with ExitStack() as stack:
            for name, engine in self.engines.items():
                int8 = INT8 in name
                given = dataclasses.replace(task, dtype=torch.int8) if int8 else task
                runner = stack.enter_context(closing(self.start(engine, given)))
                outcome = outcomes[name] = get_ready(runner, eager, subject.exact[:batch], int8=int8)
                if outcome.ok:
                    calls[name] = runner
                self.tell(f"  {name}: {_news(outcome)}")
            found: list[Row] = []
            for count in (0,) if self.neighbours is None else self.neighbours:
                with busy(count) as pids, machine.Neighbours([*pids, *(runner.pid for runner in calls.values())]) as others:
                    timings = self._time(calls, outcomes)
                mode = "inference" if self.neighbours is None else f"{count} neighbours"
                suite = SUITE if self.neighbours is None else BUSY_SUITE
                found += self._rows(subject, task, outcomes, timings, others.note, peak, dtype=dtype, suite=suite, mode=mode)
        return found

    def _time(self, calls: dict[str, Runner], outcomes: dict[str, Outcome]) -> dict[str, timing.Timing]:
        """Time the engines in turns. Where one dies, as for want of memory, it is left out, and the others begin again."""
        asked = ""

        def ask(name: str) -> None:
            nonlocal asked
            asked = name
            calls[name]()

        while calls:
            turns = {name: partial(ask, name) for name in calls}
            try:
                return timing.interleave(turns, budget_s=self.budget_s, rest_s=REST_S)
            except FailedError as reason:
                del calls[asked]
                outcomes[asked] = Outcome(False, f"failed: {reason}")
                self.tell(f"  {asked}: {_news(outcomes[asked])}")
        return {}

    def _rows(
        self,
        subject: Subject,
        task: Task,
        outcomes: Mapping[str, Outcome],
        timings: Mapping[str, timing.Timing],
        beside: str,
        peak: float,
        **case: str,
    ) -> list[Row]:
        """A row an engine; `beside` is what is to be noted of other processes."""
        batch = len(task.images)
        flop = 2.0 * subject.multiply_adds * batch
        common: dict[str, Any] = {
            **asdict(machine.conditions(CPU)),
            **{"case": subject.model, "batch": batch, "per": "image", **case},
        }
        found = []
        for name, outcome in outcomes.items():
            int8 = INT8 in name
            # Which products are of 8 bits differs from engine to engine: there is no one floor.
            floor_s = None if int8 else flop / peak
            figures = rows.figures(
                timings.get(name), timings.get(BASELINE), batch=batch, calls=batch, flop=flop, floor_s=floor_s
            )
            note = ", ".join(filter(None, (outcome.note, beside if outcome.ok else "")))
            ready = outcome.ready if outcome.ok else None
            memory, seconds = (ready.peak_mib, ready.seconds) if ready else (None, None)
            own = {"engine": name.replace(INT8, ""), "dtype": "int8" if int8 else case["dtype"], "note": note}
            found.append(Row(**common | own, **figures, peak_mib=memory, error=outcome.error, ready_s=seconds))
        return on_its_best_graph(found)


@contextlib.contextmanager
def busy(count: int) -> Iterator[list[int]]:
    """`count` processes that compute all the time, on any core; their ids."""
    processes = [subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) for _ in range(count)]
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def on_its_best_graph(found: Sequence[Row]) -> list[Row]:
    """Of engines that were given two graphs, the row of the faster one, whose note says which, and what the other one took."""
    ours = {(row.engine.removesuffix(OWN_GRAPH), row.dtype): row for row in found if row.engine.endswith(OWN_GRAPH)}
    official = {(row.engine, row.dtype): row for row in found if not row.engine.endswith(OWN_GRAPH)}
    return [_faster(row, ours[key]) if key in ours and not row.missing else row for key, row in official.items()]


def _faster(official: Row, ours: Row) -> Row:
    pair = [("the official graph", official), ("our graph", ours)]
    (which, best), (other, slower) = sorted(pair, key=lambda each: each[1].ms_p50 or math.inf)
    took = slower.note if slower.ms_p50 is None else f"{slower.ms_p50:.4g} ms"
    return dataclasses.replace(best, engine=official.engine, note=f"{best.note}, on {which} ({other}: {took})")


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
    engines: Mapping[str, Engine] | None = None,
    budget_s: float = 60.0,
    console: Console | None = None,
    start: Start = Worker,
    neighbours: Sequence[int] | None = None,
) -> list[Row]:
    """Measure, write and show; the rows. Those of a case are written when it is done, because a run may take hours."""
    console = console or table.console()
    file = results / f"{machine.device_slug(CPU)}.csv"
    rows.read(file)  # a damaged one is found before the work
    pixels = samples.load(max(batch_sizes))[1]
    engines = with_our_graph(peers.ENGINES) if engines is None else engines
    bench = Bench(engines, start, budget_s, lambda text: console.print(text, highlight=False), neighbours)
    found: list[Row] = []
    for model in models:
        for case in bench.measure_model(network.make_subject(model, pixels), dtypes, batch_sizes):
            keep(file, [row for row in case if row.dtype in dtypes])
            found += case
    report(console, found)
    console.print(f"written: {file}", soft_wrap=True)
    return found


def with_our_graph(names: Iterable[str]) -> dict[str, Engine]:
    """The engines of these names, each that is given a graph a second time with ours."""
    found = {}
    for name in names:
        found[name] = peers.ENGINES[name]
        if name in peers.OWN_GRAPH:
            found[name + OWN_GRAPH] = peers.OWN_GRAPH[name]
    return found


def counts(text: str) -> list[int]:
    """The numbers of neighbours that an option names."""
    found = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in found):
        raise click.BadParameter(f"must be numbers from 0 on, as 0,1,2; got {text!r}", param_hint="--neighbours")
    return sorted({int(part) for part in found})


def check_int8_engines(dtypes: Sequence[str], engines: Sequence[str]) -> None:
    """Refuse a dtype that no engine would compute in, and engines that no dtype would take, before hours of work."""
    known = ", ".join(name for name in peers.ENGINES if INT8 in name)
    int8 = [name for name in engines if INT8 in name]
    if "int8" in dtypes and not int8:
        raise click.BadParameter(
            f"must name an engine of --dtypes int8, as {known}; got {', '.join(engines)}", param_hint="--engines"
        )
    if "int8" not in dtypes and len(int8) == len(engines):
        raise click.BadParameter(f"must have int8 for {', '.join(engines)}; got {', '.join(dtypes)}", param_hint="--dtypes")


def report(console: Console, found: Sequence[Row]) -> None:
    """A table a model."""
    caption = (
        f"{table.describe(found[0])}. {table.PRODUCT} is: that many times as fast. Error: largest of the logits' against "
        "float64. Ready: from the eager network to the first output. Peak: resident memory of the engine's process while it "
        "runs, less that of a process that has imported torch. Floor: multiply-adds at the rate of the best matrix product."
    )
    for model in dict.fromkeys(row.case for row in found):
        mine = [row for row in found if row.case == model]
        columns = list(table.engines(mine))
        if mine[0].suite == BUSY_SUITE:
            columns.insert(0, ("beside", lambda row: row.mode))
        console.print(table.terminal(mine, columns, f"{model}, inference, 224 x 224", caption))
    if warning := table.busy(found):
        console.print(warning, style="yellow")


@click.command()
@click.option(
    "--models", default="hifuse_small", show_default=True, help="Comma-separated: hifuse_tiny, hifuse_small, hifuse_base."
)
@click.option("--batch", default="1,8", show_default=True, help="Images a call, comma-separated.")
@click.option("--dtypes", help=f"{options.DTYPES_HELP}; int8 has to be asked for: it calibrates for minutes")
@click.option("--engines", default=",".join(peers.ENGINES), help="Comma-separated.  [default: all]")
@click.option("--budget", type=click.FloatRange(0), default=60.0, show_default=True, help="Seconds of timing a case.")
@click.option("--neighbours", help="Beside how many processes that compute all the time, comma-separated, as 0,1,2.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("benchmarks/results"), help="Folder of the rows.")
def main(
    *, models: str, batch: str, dtypes: str | None, engines: str, budget: float, neighbours: str | None, output: Path
) -> None:
    """Time HiFuse on the CPU in every engine that runs it. Compilers take minutes to get ready for each case."""
    chosen = options.names("--engines", engines, peers.ENGINES)
    names = options.dtypes(dtypes, CPU, (*turns.DTYPES, "int8"))
    check_int8_engines(names, chosen)
    found = run(
        options.names("--models", models, list_models()),
        results=output,
        dtypes=names,
        batch_sizes=options.batch_sizes(batch),
        engines=with_our_graph(chosen),
        budget_s=budget,
        neighbours=None if neighbours is None else counts(neighbours),
    )
    bad = [row for row in found if row.ms_p50 is None and not row.missing]
    if bad:
        which = "; ".join(f"{row.engine} {row.case} {row.dtype} batch {row.batch}" for row in bad)
        raise click.ClickException(f"failed or wrong output, not timed: {which}")


if __name__ == "__main__":
    main()
