"""Measures configurations on a GPU and writes `tables/<architecture>.toml`: `make tune`. Without one it says what it would do.

For each key of a kernel that the calls of HiFuse look up, the candidates of candidates.toml are launched in those calls. A
candidate is left out, and named, if it does not compile or launch, if it spills, or if its results differ from those of the
present configuration. The others are timed in CUDA graphs. The best one, by the geometric mean of its times over the present
ones, is written, key by key. So a run that ends early keeps what it has, and the next one goes on with the other keys.

Choices come after the tile sizes: first the switches (`table_file.SWITCHES`), which say from when on a kernel is taken at all,
as that of a whole block; then which backend "auto" takes for an op, see rank.py, of prepared ops first. Kernels for one
architecture alone are tried where their instructions conform on this GPU, see conformed.py.
"""

from __future__ import annotations

import contextlib
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
from typing import Any

import click
import torch
import triton
from rich.console import Console
from torch import Tensor

from hifuse_fast.backends import choices, select, tables
from hifuse_fast.backends.cuda import library as cuda
from hifuse_fast.backends.record import recording
from hifuse_fast.backends.select import BackendError
from hifuse_fast.backends.tables import Config
from hifuse_fast.backends.triton.launch import INTERPRETED
from hifuse_fast.bench.table import console as terminal
from hifuse_fast.tuning import conformed, table_file
from hifuse_fast.tuning.calls import Call, choose
from hifuse_fast.tuning.cases import GAIN, Bench, Case, Cuda, check_results, device_architecture, launched, reason_of
from hifuse_fast.tuning.rank import DEVICE, Ranked, by_rival, is_choice, rank, rivals
from hifuse_fast.tuning.table_file import SWITCHES
from hifuse_fast.tuning.whole_calls import NETWORK_SWITCHES, tuned_calls

BATCHES = (64, 1)
MOST_CASES = 4  #: that a key is measured on
HOPELESS = 1.3  #: times the present time on one case, after which the others are not measured
OF_ONE_ARCHITECTURE = "_sm90"  #: how sections of such kernels end
Key = tuple[str, str]  #: section and key of the table


def plan(calls: Iterable[Call], architecture: str, dtypes: Iterable[str], batches: Iterable[int]) -> dict[Key, list[Case]]:
    """For each key of a kernel that has candidates, then of an op, the calls that look it up.

    Tile sizes are measured forward alone where that suffices, for each backend that looks them up. The calls of an op's key
    are those with and without the backward.
    """
    found: dict[Key, list[Case]] = {}
    for call, dtype in itertools.product(calls, dtypes):
        backends = [call.only] if call.only else [*select.candidates(call.op, DEVICE), "auto"]
        for batch, backend, mode in itertools.product(call.batches or batches, backends, call.modes):
            case = Case(call, batch, dtype, mode, backend)
            for key in _looked_up(case, architecture):
                if _decides(case, key[0]):
                    found.setdefault(key, []).append(case)
    order = [*(kernel for kernel in declared() if kernel not in SWITCHES), *SWITCHES, *sorted(select.OPS, key=_is_function)]
    known = sorted((key for key in found if key[0] in order), key=lambda key: order.index(key[0]))
    forward = {key: [case for case in found[key] if case.mode == "forward" and not is_choice(key[0])] for key in known}
    return {key: spread(forward[key] or found[key]) for key in known}


def _decides(case: Case, section: str) -> bool:
    """Whether the case is one to measure what stands in the section."""
    if section in NETWORK_SWITCHES:
        return case.call.op not in select.OPS
    if is_choice(section):
        return section == case.call.op and case.backend == "auto"
    return case.backend != "auto"


def _is_function(op: str) -> bool:
    return not op.startswith("prepare_")


def _looked_up(case: Case, architecture: str) -> Iterable[Key]:
    with recording(architecture), tables.lookups() as found, contextlib.suppress(BackendError):
        case.bind("meta")()
    return dict.fromkeys(found)


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
    times: dict[str, float] = field(default_factory=dict)  #: of the other configurations of a switch, over that of the best

    @property
    def entry(self) -> dict[str, Any]:
        """What the table is to say."""
        return {**self.config, **({tables.TIMES: self.times} if self.times else {})}


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
            left_out.append(f"{config}: {reason_of(error)}")
            continue
        measured.append((found, config))
    for ratio, config in sorted(measured, key=lambda pair: pair[0]):
        if ratio >= GAIN:
            break
        with tables.override(kernel, config):
            faults = [fault for case in cases for fault in bench.faults(case)]
        if not faults:
            return Tuned(config, ratio, left_out, _times(kernel, config, ratio, [(1.0, present), *measured]))
        left_out.append(f"{config}: {ratio:.2f} of the time, but {faults[0]}")
    return Tuned(present, 1.0, left_out, _times(kernel, present, 1.0, measured))


def _times(kernel: str, best: Config, ratio: float, measured: Iterable[tuple[float, Config]]) -> dict[str, float]:
    """What an entry of a switch has as `times`."""
    others = measured if kernel in SWITCHES else ()
    return {table_file.label(config): round(each / ratio, 2) for each, config in others if config != best}


def _ratio(cases: Sequence[Case], expected: Sequence[list[Tensor]], times: Sequence[float], bench: Bench) -> float:
    """The geometric mean of the times over the present ones. For a hopeless candidate it is that of the first cases alone."""
    logs: list[float] = []
    for case, right, present in zip(cases, expected, times, strict=True):
        check_results(case, bench.results(case), right)
        logs.append(math.log(bench.seconds(case) / present))
        if logs[-1] > math.log(HOPELESS):
            break
    return math.exp(sum(logs) / len(logs))


def trials(key: Key, cases: Sequence[Case], architecture: str) -> list[tuple[Config, Case]]:
    """What is measured for a key: each configuration of its kernel on each case, or each case by each rival."""
    if is_choice(key[0]):
        return [({}, by_rival(case, name)) for case, name in itertools.product(cases, rivals(key[0]))]
    return list(itertools.product(candidates(key[0], tables.lookup(*key, architecture)), cases))


def prepare(section: str, config: Config, case: Case, architecture: str) -> None:
    """Compile, into Triton's cache, what the trial will launch. Call it in a process of its own."""
    with tables.override(section, config) if config else contextlib.nullcontext():
        for made in launched(case, architecture):
            made.compile()


def measure(
    key: Key, cases: Sequence[Case], architecture: str, bench: Bench, *, late: Callable[[], bool]
) -> Tuned | Ranked | None:
    """The best for a key; None where time ran out."""
    if is_choice(key[0]):
        return rank(key[0], cases, choices.order(*key, architecture), bench, late=late)
    return tune(key[0], cases, candidates(key[0], tables.lookup(*key, architecture)), bench, late=late)


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
    left = list(keys)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        ahead: dict[Key, list[Future[None]]] = {}  # whose failures are told by the process that measures
        for key, cases in keys.items() if jobs > 1 else ():
            ahead[key] = [
                pool.submit(prepare, key[0], config, case, architecture) for config, case in trials(key, cases, architecture)
            ]
        for key, cases in keys.items():
            wait(ahead.get(key, []), timeout=max(0.0, end - time.monotonic()))
            found = measure(key, cases, architecture, bench, late=lambda: time.monotonic() > end)
            if found is None:
                break
            if found.entry:
                table_file.put(table, *key, found.entry, full_origin(key, origin))
            if found.entry and output is not None:
                table_file.put(output / table.name, *key, found.entry, full_origin(key, origin), start=table)
            tables.reload()  # what is measured after this, an order above all, is measured with it
            left.remove(key)
            _tell(console, key, found)
        pool.shutdown(wait=False, cancel_futures=True)
    return len(left)


def _tell(console: Console, key: Key, found: Tuned | Ranked) -> None:
    """What was found, and what was left out."""
    ratio = f", {found.ratio:.2f} of the time" if isinstance(found, Tuned) else ""
    console.print(f"{key[0]} {key[1]}: {found.entry or 'nothing could be measured'}{ratio}", highlight=False)
    for reason in found.left_out:
        console.print(f"  left out: {reason}", style="yellow", highlight=False)


def pending(keys: dict[Key, list[Case]], table: Path, origin: str) -> dict[Key, list[Case]]:
    """The keys without an entry that this device measured with these versions; `origin` is device, date, versions."""
    entries = table_file.read(table)

    def measured(key: Key) -> bool:
        device, _, *versions = full_origin(key, origin).split(", ")
        found = entries.get(key[0], {}).get(key[1], {}).get("origin", "predicted").split(", ")
        return bool(found[0] == device and found[2:] == versions)

    return {key: cases for key, cases in keys.items() if not measured(key)}


def full_origin(key: Key, origin: str) -> str:
    """The origin of an entry: that of a choice in which CUDA kernels have a part names their compiler too."""
    theirs = "cuda" in select.OPS.get(key[0], ()) or (key[0] in SWITCHES and key[0] != "mixer_winograd")
    if cuda.lib is None or not theirs:
        return origin
    return f"{origin}, cuda {cuda.lib.build_info()['cuda']}"


def conforming(keys: dict[Key, list[Case]], device: str, console: Console) -> dict[Key, list[Case]]:
    """The keys that may be tuned on the GPU of this name; says which ones may not."""
    of_one = {key[0] for key in keys if key[0].endswith(OF_ONE_ARCHITECTURE)}
    if not of_one or conformed.holds(device):
        return keys
    reason = f"conformance has not passed on {device}: make gpu-check STAGE=conformance"
    console.print(f"left out: {', '.join(sorted(of_one))}: {reason}", style="yellow", highlight=False)
    return {key: cases for key, cases in keys.items() if key[0] not in of_one}


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
@click.option("--choices", "no_tiles", is_flag=True, help="Only what is taken, switches and orders, and no tile sizes.")
@click.option("--again", is_flag=True, help="Also keys that this device has measured with these versions.")
@click.option("--jobs", type=click.IntRange(1), default=lambda: len(os.sched_getaffinity(0)), help="Processes that compile.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder for a copy of the table.")
def main(
    *, budget: float, kernels: str, names: str, dtypes: str, no_tiles: bool, again: bool, jobs: int, output: Path | None
) -> None:
    """Measure the candidates on this machine's GPU and write its architecture's table."""
    console = terminal(width=160)
    there = torch.cuda.is_available() and not INTERPRETED
    architecture = device_architecture() if there else "sm_90"
    try:
        calls = choose(names, tuned_calls())
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    begins = tuple(name.strip() for name in kernels.split(","))
    keys = plan(calls, architecture, [name.strip() for name in dtypes.split(",")], BATCHES)
    chosen = {*SWITCHES, *select.OPS} if no_tiles else {key[0] for key in keys}
    keys = {key: cases for key, cases in keys.items() if key[0].startswith(begins) and key[0] in chosen}
    if not there:
        return _say(console, keys, architecture)
    device = torch.cuda.get_device_name()
    keys = conforming(keys, device, console)
    table, origin = table_file.path(architecture), origin_of(device)
    work = keys if again else pending(keys, table, origin)
    console.print(f"{origin}: {len(work)} of {len(keys)} keys to measure", highlight=False)
    left = run(work, architecture, Cuda(), table, origin, budget_s=budget, jobs=jobs, console=console, output=output)
    console.print(f"written: {table}; {left} keys left", soft_wrap=True)
    return None


def _say(console: Console, keys: dict[Key, list[Case]], architecture: str) -> None:
    """What would be measured."""
    console.print(f"No CUDA device: nothing is measured. On a GPU with the calls' keys of {architecture} this would be:")
    total = 0
    for key, cases in keys.items():
        count = len(trials(key, cases, architecture)) // len(cases)
        total += count
        console.print(f"  {key[0]} {key[1]}: {count} candidates on {len(cases)} calls", highlight=False)
    console.print(f"{len(keys)} keys, {total} candidates", highlight=False)


if __name__ == "__main__":
    main()
