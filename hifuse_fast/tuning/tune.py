"""Measures configurations on a GPU and writes `tables/<architecture>.toml`: `make tune`. Without one it says what it would do.

For each (kernel, key) that the calls of HiFuse look up, the candidates of `tuning/candidates.toml` are launched in those calls.
A candidate is left out, and named, if it does not compile or launch, if it spills, or if its results differ from those of the
present configuration. The others are timed in CUDA graphs. The best one, by the geometric mean of its times over the present
ones, is written, key by key. So a run that ends early keeps what it has, and the next one goes on with the other keys.

Which of an op's two ways "auto" takes (choices.py) is tuned like a tile size, after these: its candidates are the Triton
kernels and the reference, its cases the op's calls of that key, forward alone and with the backward, for one large batch and
for single images, which weigh alike. In CUDA graphs: what the CPU takes to launch, which decides eager calls of few images, is
left out of both.
"""

from __future__ import annotations

import functools
import itertools
import math
import multiprocessing
import os
import time
import tomllib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import click
import torch
import triton
from rich.console import Console
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.backends.choices import CHOICE
from hifuse_fast.backends.tables import Config
from hifuse_fast.backends.triton.compile import Compilation, compilation, resources
from hifuse_fast.backends.triton.launch import INTERPRETED, recording
from hifuse_fast.tuning import table_file
from hifuse_fast.tuning.calls import DTYPES, Call, choose
from hifuse_fast.tuning.frozen_calls import network_calls

BATCHES = (64, 1)
MOST_CASES = 4  #: that a key is measured on
HOPELESS = 1.3  #: times the present time on one case, after which the others are not measured
GAIN = 0.98  #: of the present time that a candidate has to reach to replace it
Key = tuple[str, str]  #: kernel and key of its table


@dataclass(frozen=True)
class Case:
    """A call that looks the key up."""

    call: Call
    batch: int
    dtype: str
    mode: str
    backend: str = "triton"  #: "auto" where the choice itself is measured

    @property
    def moved(self) -> float:
        """Bytes that the call must move."""
        return self.call.moved(self.batch, self.mode, DTYPES[self.dtype].itemsize)

    def bind(self, device: str) -> Callable[[], list[Tensor]]:
        """The call on seeded inputs, to be called again and again under one configuration or another."""
        inputs, grad = self.call.inputs(self.batch, DTYPES[self.dtype], device), None
        if self.mode != "forward":
            grad = self.call.gradient(self.batch, DTYPES[self.dtype], device)
        return self.call.bind(inputs, grad, self.backend)


class Bench(Protocol):
    """Where candidates run: a GPU, or a test's stand-in."""

    def results(self, case: Case) -> list[Tensor]:
        """Of the call, under the present configurations."""

    def seconds(self, case: Case) -> float:
        """That the call takes."""

    def faults(self, case: Case) -> list[str]:
        """Why what the call launches is not to be had, as spilled registers."""

    def check(self) -> None:
        """Raise where the device is lost."""


class Cuda:
    """The current CUDA device."""

    def __init__(self) -> None:
        self._held: tuple[Case, Callable[[], list[Tensor]]] | None = None

    def _bound(self, case: Case) -> Callable[[], list[Tensor]]:
        if self._held is None or self._held[0] is not case:
            self._held = None  # before the next inputs are made
            self._held = (case, case.bind("cuda"))
        return self._held[1]

    def results(self, case: Case) -> list[Tensor]:
        found = self._bound(case)()
        torch.cuda.synchronize()
        return found

    def seconds(self, case: Case) -> float:
        median: float = triton.testing.do_bench_cudagraph(self._bound(case), rep=5, return_mode="median")
        return 1e-3 * median

    def faults(self, case: Case) -> list[str]:
        architecture = device_architecture()
        made = launched(case, architecture)
        return [fault for each in made for fault in resources(each.compile(), architecture).faults]

    def check(self) -> None:
        torch.cuda.synchronize()


def plan(calls: Iterable[Call], architecture: str, dtypes: Iterable[str], batches: Iterable[int]) -> dict[Key, list[Case]]:
    """For each (kernel, key) that has candidates the calls that look it up; forward alone where that suffices.

    The calls of a choice are those with and without the backward.
    """
    found: dict[Key, list[Case]] = {}
    for call, dtype, batch, backend in itertools.product(calls, dtypes, batches, ("triton", "auto")):
        for mode in call.modes:
            case = Case(call, batch, dtype, mode, backend)
            for key in _looked_up(case, architecture):
                if is_choice(key) == (backend == "auto"):
                    found.setdefault(key, []).append(case)
    order = list(declared())
    known = sorted((key for key in found if key[0] in order), key=lambda key: order.index(key[0]))
    forward = {key: [case for case in found[key] if case.mode == "forward" and not is_choice(key)] for key in known}
    return {key: spread(forward[key] or found[key]) for key in known}


def _looked_up(case: Case, architecture: str) -> Iterable[Key]:
    with recording(architecture), tables.lookups() as found:
        case.bind("meta")()
    return dict.fromkeys(found)


def is_choice(key: Key) -> bool:
    """Whether the key's candidates are an op's two ways, and not tile sizes."""
    return any(CHOICE in group for group in declared().get(key[0], []))


def spread(cases: list[Case]) -> list[Case]:
    """At most `MOST_CASES`, evenly from the largest to the smallest."""
    ordered = sorted(cases, key=lambda case: -case.moved)
    if len(ordered) <= MOST_CASES:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (MOST_CASES - 1))] for i in range(MOST_CASES)]


@functools.cache
def declared() -> dict[str, list[dict[str, list[int]]]]:
    """The candidates of each kernel, as groups of lists."""
    return tomllib.loads(Path(__file__).with_name("candidates.toml").read_text(encoding="utf-8"))


def candidates(kernel: str, present: Config) -> list[Config]:
    """The configurations to try, the present one first."""
    groups = declared()[kernel]
    made = [dict(zip(group, values, strict=True)) for group in groups for values in itertools.product(*group.values())]
    return [present, *(config for config in made if config != present)]


@dataclass(frozen=True)
class Tuned:
    """The best configuration of a key, its time over that of the present one, and what was left out, with the reasons."""

    config: Config
    ratio: float
    left_out: list[str]
    measured: list[tuple[float, Config]] = field(default_factory=list)  #: the ratios of the others


def tune(
    kernel: str, cases: Sequence[Case], tried: Sequence[Config], bench: Bench, *, late: Callable[[], bool]
) -> Tuned | None:
    """The best of `tried`, whose first is the present one. None where time ran out before all were measured."""
    present = tried[0]
    with tables.override(kernel, present):
        expected = [bench.results(case) for case in cases]
        times = [bench.seconds(case) for case in cases]
    measured, left_out = [], []
    for config in tried[1:]:
        if late():
            return None
        try:
            with tables.override(kernel, config):
                found = _ratio(cases, expected, times, bench)
        except Exception as error:  # whatever a kernel can fail with: the candidate is left out
            bench.check()
            left_out.append(f"{config}: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")
            continue
        measured.append((found, config))
    for ratio, config in sorted(measured, key=lambda pair: pair[0]):
        if ratio >= GAIN:
            break
        with tables.override(kernel, config):
            faults = [fault for case in cases for fault in bench.faults(case)]
        if not faults:
            return Tuned(config, ratio, left_out, measured)
        left_out.append(f"{config}: {ratio:.2f} of the time, but {faults[0]}")
    return Tuned(present, 1.0, left_out, measured)


def entry_of(tuned: Tuned) -> dict[str, float]:
    """What the table is to say: the configuration, and for a choice the time of the reference over that of the kernels."""
    if CHOICE not in tuned.config or not tuned.measured:
        return dict(tuned.config)
    ((ratio, other),) = tuned.measured
    return {**tuned.config, tables.REFERENCE: round(1 / ratio if other[CHOICE] else ratio, 2)}


class WrongResultError(Exception):
    """A candidate's results are not those of the present configuration."""


def _ratio(cases: Sequence[Case], expected: Sequence[list[Tensor]], times: Sequence[float], bench: Bench) -> float:
    """The geometric mean of the times over the present ones. For a hopeless candidate it is that of the first cases alone."""
    logs: list[float] = []
    for case, right, present in zip(cases, expected, times, strict=True):
        for got, wanted in zip(bench.results(case), right, strict=True):
            if not close(got, wanted):
                raise WrongResultError(f"{case.call.name}, batch {case.batch}, {case.dtype}")
        logs.append(math.log(bench.seconds(case) / present))
        if logs[-1] > math.log(HOPELESS) and case.backend != "auto":  # a choice is slower here and faster there
            break
    return math.exp(sum(logs) / len(logs))


def close(got: Tensor, wanted: Tensor) -> bool:
    """Whether two results differ by no more than sums in another order do."""
    if wanted.numel() == 0:
        return got.shape == wanted.shape
    allowed = (8 * torch.finfo(wanted.dtype).eps + 5e-5) * wanted.abs().max().item()
    return (got.double() - wanted.double()).abs().max().item() <= allowed  # False for NaN


def prepare(kernel: str, config: Config, case: Case, architecture: str) -> None:
    """Compile what measuring the candidate will launch, into Triton's cache; to be called in a process of its own."""
    with tables.override(kernel, config):
        for made in launched(case, architecture):
            made.compile()


def launched(case: Case, architecture: str) -> list[Compilation]:
    """What the call launches under the present configurations."""
    with recording(architecture) as record:
        case.bind("meta")()
    return list(dict.fromkeys(compilation(launch, architecture) for launch in record.launches))


def device_architecture() -> str:
    """That of the current CUDA device."""
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


def run(
    keys: dict[Key, list[Case]],
    architecture: str,
    bench: Bench,
    table: Path,
    origin: str,
    *,
    budget_s: float,
    jobs: int,
    console: Console,
    output: Path | None = None,
) -> int:
    """Tune the keys in order until the budget is spent; how many are left."""
    end = time.monotonic() + budget_s
    work = {key: candidates(key[0], tables.lookup(*key, architecture)) for key in keys}
    left = list(keys)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        ahead: dict[Key, list[Future[None]]] = {}  # whose failures are told by the process that measures
        for (kernel, key), cases in keys.items() if jobs > 1 else ():
            tried = itertools.product(work[kernel, key], cases)
            ahead[kernel, key] = [pool.submit(prepare, kernel, config, case, architecture) for config, case in tried]
        for (kernel, key), cases in keys.items():
            wait(ahead.get((kernel, key), []), timeout=max(0.0, end - time.monotonic()))
            tuned = tune(kernel, cases, work[kernel, key], bench, late=lambda: time.monotonic() > end)
            if tuned is None:
                break
            table_file.put(table, kernel, key, entry_of(tuned), origin)
            if output is not None:
                table_file.put(output / table.name, kernel, key, entry_of(tuned), origin, start=table)
            tables.reload()  # what is tuned after this, a choice above all, is measured with it
            left.remove((kernel, key))
            console.print(f"{kernel} {key}: {entry_of(tuned)}, {tuned.ratio:.2f} of the time", highlight=False)
            for reason in tuned.left_out:
                console.print(f"  left out: {reason}", style="yellow", highlight=False)
        pool.shutdown(wait=False, cancel_futures=True)
    return len(left)


def pending(keys: dict[Key, list[Case]], table: Path, origin: str) -> dict[Key, list[Case]]:
    """The keys without an entry that this device measured with these versions; `origin` is device, date, versions."""
    device, _, *versions = origin.split(", ")
    entries = table_file.read(table)

    def measured(key: Key) -> bool:
        found = entries.get(key[0], {}).get(key[1], {}).get("origin", "predicted").split(", ")
        return bool(found[0] == device and found[2:] == versions)

    return {key: cases for key, cases in keys.items() if not measured(key)}


def origin_of(device: str) -> str:
    """Device, date, versions."""
    return f"{device}, {datetime.now(UTC):%Y-%m-%d}, torch {torch.__version__.split('+')[0]}, triton {triton.__version__}"


@click.command()
@click.option(
    "--budget", type=click.FloatRange(0), default=3600.0, show_default=True, help="Seconds; what is measured is kept."
)
@click.option("--kernels", default="", help="Comma-separated beginnings of kernels' names, as linear; all if empty.")
@click.option("--calls", "names", default="", help="Comma-separated parts of the calls' names, as 7x7; all if empty.")
@click.option("--dtypes", default="bfloat16", show_default=True, help="Comma-separated.")
@click.option("--choices", is_flag=True, help="Only which of an op's two ways is the faster one.")
@click.option("--again", is_flag=True, help="Also keys that this device has measured with these versions.")
@click.option("--jobs", type=click.IntRange(1), default=lambda: len(os.sched_getaffinity(0)), help="Processes that compile.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder for a copy of the table.")
def main(
    *, budget: float, kernels: str, names: str, dtypes: str, choices: bool, again: bool, jobs: int, output: Path | None
) -> None:
    """Measure the candidates on this machine's GPU and write its architecture's table."""
    console = Console(width=160)
    there = torch.cuda.is_available() and not INTERPRETED
    architecture = device_architecture() if there else "sm_90"
    try:
        calls = choose(names, network_calls())
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    begins = tuple(name.strip() for name in kernels.split(","))
    keys = plan(calls, architecture, [name.strip() for name in dtypes.split(",")], BATCHES)
    keys = {key: cases for key, cases in keys.items() if key[0].startswith(begins) and (is_choice(key) or not choices)}
    if not there:
        return _say(console, keys, architecture)
    table, origin = table_file.path(architecture), origin_of(torch.cuda.get_device_name())
    work = keys if again else pending(keys, table, origin)
    console.print(f"{origin}: {len(work)} of {len(keys)} keys to measure", highlight=False)
    left = run(work, architecture, Cuda(), table, origin, budget_s=budget, jobs=jobs, console=console, output=output)
    console.print(f"written: {table}; {left} keys left", soft_wrap=True)
    return None


def _say(console: Console, keys: dict[Key, list[Case]], architecture: str) -> None:
    """What would be measured."""
    console.print(f"No CUDA device: nothing is measured. On a GPU with the calls' keys of {architecture} this would be:")
    total = 0
    for (kernel, key), cases in keys.items():
        count = len(candidates(kernel, tables.lookup(kernel, key, architecture)))
        total += count
        console.print(f"  {kernel} {key}: {count} candidates on {len(cases)} calls", highlight=False)
    console.print(f"{len(keys)} keys, {total} candidates", highlight=False)


if __name__ == "__main__":
    main()
