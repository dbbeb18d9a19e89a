"""Where the time of the frozen network goes on a CUDA device, kernel by kernel: `python -m benchmarks.gpu_profile`.

The kernels of some calls are timed by torch.profiler, each launch by the device itself. A row has a kernel's name and what all
its launches of one call take together; the row "all kernels" has their sum. Gaps between kernels are in none of them. The
network is called without its CUDA graph, which does not change what a kernel takes. Without a CUDA device nothing is measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_network import golden
from hifuse_fast import list_models, optimize_for_inference
from hifuse_fast.backends.triton.compile import compile_ahead
from hifuse_fast.bench import machine, rows, table
from hifuse_fast.bench.network import DTYPES
from hifuse_fast.bench.rows import Row
from hifuse_fast.testing import golden_image

SUITE, ALL = "gpu_profile", "all kernels"
ENGINES = {"auto": "hifuse_fast", "triton": "hifuse_fast triton", "cuda": "hifuse_fast cuda"}  #: by backend
WARMUP, CALLS = 3, 10
LONGEST_NAME = 100


@dataclass(frozen=True)
class Launch:
    """One run of a kernel: its name, when it began and how long it took, in microseconds."""

    kernel: str
    begin: float
    duration: float


@dataclass(frozen=True)
class Share:
    """What a kernel takes of a call: its launches, and their microseconds in each of the calls."""

    kernel: str
    launches: float
    per_call: list[float]

    @property
    def median(self) -> float:
        """Microseconds of the launches of one call."""
        return statistics.median(self.per_call)


def shares(launches: Iterable[Launch], calls: int) -> list[Share]:
    """What each kernel takes of a call, of launches in `calls` calls; the largest first, after the sum of all."""
    by_kernel: dict[str, list[Launch]] = {}
    for launch in sorted(launches, key=lambda launch: launch.begin):
        by_kernel.setdefault(launch.kernel, []).append(launch)
    found = [Share(name, len(each) / calls, _per_call([x.duration for x in each], calls)) for name, each in by_kernel.items()]
    sums = [sum(each) for each in zip(*(share.per_call for share in found), strict=True)]
    ordered = sorted(found, key=lambda share: -share.median)
    return [Share(ALL, sum(share.launches for share in found), sums), *ordered] if found else []


def _per_call(durations: list[float], calls: int) -> list[float]:
    """The sums of the calls, which launch alike; the mean of all where they do not."""
    count, rest = divmod(len(durations), calls)
    if rest:
        return [sum(durations) / calls] * calls
    return [sum(durations[i * count : (i + 1) * count]) for i in range(calls)]


def profiled(call: Callable[[], object], calls: int) -> list[Launch]:
    """The kernels of `calls` calls on the current CUDA device."""
    for _ in range(WARMUP):
        call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    events = [event for event in found.events() or () if event.device_type == DeviceType.CUDA]
    return [Launch(short(event.name), event.time_range.start, event.time_range.elapsed_us()) for event in events]


def short(kernel: str) -> str:
    """A kernel's name without its namespaces, and without what it is called with."""
    name = kernel.removeprefix("void ").split("(")[0].replace("hifuse::cuda::", "")
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."


def made_rows(
    found: list[Share], model: str, dtype: str, batch: int, conditions: rows.Conditions, backend: str = "auto"
) -> list[Row]:
    """A row a kernel, in milliseconds a call."""
    total = found[0].median if found else 0.0
    made = []
    common: dict[str, Any] = {"suite": SUITE, "engine": ENGINES[backend], "dtype": dtype, "batch": batch}
    for share in found:
        low, middle, high = (1e-3 * each for each in _quantiles(share.per_call))
        made.append(
            Row(
                **asdict(conditions), **common, case=f"{model}: {share.kernel}",
                mode="inference", per="call", ms_p20=low, ms_p50=middle, ms_p80=high, images_per_s=None, gflop_per_s=None,
                gb_per_s=None, ratio=None, floor_share=None, peak_mib=None, error=None,
                note=f"{share.launches:g} launches, {100 * share.median / total:.1f} % of all kernels",
            )
        )  # fmt: skip
    return made


def is_older(row: Row, new: list[Row]) -> bool:
    """Whether a row is of an earlier profile like this one, whose kernels may have other names."""
    return any(row.suite == SUITE and row.case.split(":")[0] == each.case.split(":")[0]
               and (row.engine, row.dtype, row.batch) == (each.engine, each.dtype, each.batch) for each in new[:1])  # fmt: skip


def _quantiles(values: list[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    low, high = ordered[round(0.2 * (len(ordered) - 1))], ordered[round(0.8 * (len(ordered) - 1))]
    return low, statistics.median(ordered), high


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("benchmarks/results"), help="Folder of the rows.")
@click.option("--model", type=click.Choice(list_models()), default="hifuse_small", show_default=True)
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True)
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="bfloat16", show_default=True)
@click.option("--calls", type=click.IntRange(1), default=CALLS, show_default=True)
@click.option("--backend", type=click.Choice(list(ENGINES)), default="auto", show_default=True, help="Of all ops.")
def main(*, output: Path, model: str, batch: int, dtype: str, calls: int, backend: str) -> None:
    """Time the kernels of the frozen network."""
    console = table.console()
    if not torch.cuda.is_available():
        console.print(f"No CUDA device: nothing is measured. On one, the kernels of {model}, {batch} images, would be.")
        return
    device = torch.device("cuda")
    network = optimize_for_inference(golden(model, ()).to(device), DTYPES[dtype], backend=backend, cuda_graphs=False)
    images = golden_image(batch, 224, 224).to(device, DTYPES[dtype])
    compile_ahead(lambda: network(images))
    with torch.inference_mode():
        found = shares(profiled(lambda: network(images), calls), calls)
    now = machine.conditions(device)
    file = output / f"{now.device}.csv"
    new = made_rows(found, model, dtype, batch, now, backend)
    rows.write(file, [*(row for row in rows.read(file) if not is_older(row, new)), *new])
    for share in found:
        console.print(f"{share.median:9.1f} us {share.launches:5g} x {share.kernel}", highlight=False)
    console.print(f"written: {file}", soft_wrap=True)


if __name__ == "__main__":
    main()
