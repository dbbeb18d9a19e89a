"""Lists what the machine code of every kernel takes, on any machine: `make kernel-report`.

The launches of Triton kernels of all calls of HiFuse are recorded from meta tensors, forward and backward, of ops with
gradients and of prepared ones. They are compiled ahead of time for each architecture. The report has their registers, spilled
bytes, shared memory, tensor-core instructions and occupancy. The same and more of the CUDA kernels is read from their library,
see machine_code.py, and what they ask of the memories is counted in their emulation, see traffic.py; where one of the two is
not built, the report says so. The exit code is 1 where a kernel cannot be launched, spills, or does not compile.

Where a product fits the architecture's warpgroup instruction (see `compile.Resources.wgmma_fits`) but was compiled to an older
one, the note says so. That is no failure.
"""

from __future__ import annotations

import csv
import io
import itertools
import multiprocessing
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from hifuse_fast.backends.cuda import library as cuda
from hifuse_fast.backends.record import recording
from hifuse_fast.backends.triton import compile as ahead
from hifuse_fast.backends.triton.compile import Compilation, Resources
from hifuse_fast.backends.triton.launch import INTERPRETED
from hifuse_fast.bench.table import console as terminal
from hifuse_fast.files import writing
from hifuse_fast.tuning import machine_code, traffic
from hifuse_fast.tuning.calls import DTYPES, Call, choose
from hifuse_fast.tuning.cases import reason_of
from hifuse_fast.tuning.floors import predictions
from hifuse_fast.tuning.frozen_calls import network_calls

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
COLUMNS = ("kernel", "dtype", "constants", "warps", "regs", "spill", "shared", "tensor cores", "occ.", "note")
WARPGROUP = {"sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma"}  # the newest instruction, which wants big products


@dataclass(frozen=True)
class Entry:
    """A compiled kernel, or the reason that there is none."""

    architecture: str
    calls: tuple[str, ...]  #: that launch it
    compilation: Compilation | None
    resources: Resources | None
    error: str = ""

    @property
    def faults(self) -> list[str]:
        """Why the report fails."""
        return [self.error] if self.resources is None else self.resources.faults

    @property
    def notes(self) -> list[str]:
        """What else there is to say."""
        wanted, found = WARPGROUP.get(self.architecture), self.resources
        return [f"no {wanted}"] if wanted and found and found.wgmma_fits and wanted not in found.tensor_core else []

    def cells(self) -> list[str]:
        """The line of the table, see `COLUMNS`."""
        note = "; ".join([*(f"FAILS: {fault}" for fault in self.faults), *self.notes])
        if self.compilation is None:
            return [self.calls[0], *[""] * (len(COLUMNS) - 2), note]
        name, dtype, constants = _describe(self.compilation)
        if self.resources is None:
            return [name, dtype, constants, *[""] * (len(COLUMNS) - 4), note]
        r = self.resources
        cores = ", ".join(f"{instruction.split('.')[0]} {count}" for instruction, count in r.tensor_core.items())
        numbers = [r.warps, r.registers, r.spill, r.shared]
        return [name, dtype, constants, *map(str, numbers), cores, f"{100 * r.occupancy:.0f} %", note]


def report(
    calls: Iterable[Call], architectures: Iterable[str], dtypes: Iterable[str], *, batches: Iterable[int] = (64,), jobs: int = 1
) -> list[Entry]:
    """An entry for each compilation, in the order of architectures and calls; `jobs` processes compile."""
    uses: dict[Compilation, list[str]] = {}
    failed = []
    calls = list(calls)
    for architecture in architectures:
        for call in calls:
            try:
                for made in _compilations(call, architecture, dtypes, batches):
                    uses.setdefault(made, []).append(call.name)
            except Exception as error:  # a launcher refuses: the other calls are reported all the same
                failed.append(Entry(architecture, (call.name,), None, None, reason_of(error)))
    found = _measure_all(list(uses), jobs)
    return failed + [
        Entry(made.architecture, tuple(dict.fromkeys(names)), made, *outcome)
        for (made, names), outcome in zip(uses.items(), found, strict=True)
    ]


def _compilations(call: Call, architecture: str, dtypes: Iterable[str], batches: Iterable[int]) -> list[Compilation]:
    """What the call launches without and, where it has them, with gradients."""
    with recording(architecture) as record:
        for batch, dtype, mode in itertools.product(batches, dtypes, call.modes if call.has_kernels("triton") else ()):
            inputs = call.inputs(batch, DTYPES[dtype], "meta")
            call.run(inputs, None if mode == "forward" else call.gradient(batch, DTYPES[dtype], "meta"), "triton")
    return ahead.compilations(record)


def _measure_all(made: Sequence[Compilation], jobs: int) -> list[tuple[Resources | None, str]]:
    if jobs == 1 or len(made) < 2:
        return [measure(each) for each in made]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(measure, made, chunksize=4))


def measure(made: Compilation) -> tuple[Resources | None, str]:
    """What the compilation takes, or why there is none."""
    try:
        return ahead.resources(made.compile(), made.architecture), ""
    except Exception as error:  # of whatever kind: it is reported
        return None, f"does not compile: {reason_of(error)}"


def _describe(made: Compilation) -> tuple[str, str, str]:
    """The op (or "pointwise" for several) and the kernel, the dtype of its first tensor, and its compile-time constants."""
    module, function = made.kernel.split(":")
    *_, folder, file = module.split(".")
    dtype = next((kind[1:] for _, kind in made.signature if kind.startswith("*")), "")
    constants = [f"{name}={value}" for name, value in made.constants if name.isupper()]  # the others are arguments that are 1
    constants += [f"{name}={value}" for name, value in made.options if name != "num_warps"]
    return f"{file if folder == 'triton' else folder} {function.strip('_').removesuffix('_kernel')}", dtype, " ".join(constants)


def show(console: Console, title: str, columns: Sequence[str], lines: Iterable[tuple[Sequence[str], bool]]) -> None:
    """A table; the lines of which it is said that they fail are red."""
    table = Table(title=title, title_justify="left")
    for name in columns:
        text = name in ("kernel", "dtype", "constants", "tensor cores", "note", "call", "mode")
        table.add_column(name, justify="left" if text else "right", overflow="fold")
    for cells, fails in lines:
        table.add_row(*cells, style="bold red" if fails else "")
    console.print(table)


def show_cuda(console: Console, architectures: Sequence[str]) -> list[machine_code.Code]:
    """The tables of the CUDA kernels, or why there are none; the kernels."""
    if cuda.lib is None or cuda.EMULATED:
        console.print(f"no CUDA kernels: {cuda.why_missing or 'HIFUSE_CUDA_EMULATED is set'}", highlight=False)
        return []
    of, found = machine_code.table_architecture, machine_code.codes(cuda.lib)
    found = [code for code in found if of(code.architecture) in architectures]
    for architecture in dict.fromkeys(code.architecture for code in found):
        there = [code for code in found if code.architecture == architecture]
        title = f"{architecture}: {len(there)} CUDA kernels"
        show(console, title, machine_code.COLUMNS, ((code.cells(), bool(code.faults)) for code in there))
    return found


def show_traffic(console: Console, calls: Sequence[Call]) -> None:
    """What the CUDA kernels ask of the memories in those of the calls that are small enough, or why it was not counted."""
    names = [call.name for call in calls if traffic.is_counted(call)]
    if not names:
        return
    counted, reason = traffic.measure(names)
    if reason is not None:
        console.print(f"no requests of the CUDA kernels counted: {reason}", highlight=False)
    else:
        title = "requests of whole warps in the emulation, bfloat16, one image"
        show(console, title, traffic.COLUMNS, ((each.cells(), False) for each in counted))


def write(path: Path, head: Sequence[str], body: Iterable[Sequence[str]]) -> None:
    """A table as .csv or as markdown."""
    text = io.StringIO()
    if path.suffix == ".csv":
        csv.writer(text, lineterminator="\n").writerows([head, *body])
    else:
        text.write("".join("| " + " | ".join(line) + " |\n" for line in [head, ["---"] * len(head), *body]))
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as file:
        file.write(text.getvalue())


def chosen(option: str, text: str, known: Iterable[str]) -> list[str]:
    """The comma-separated names in `text`; click.UsageError where one is not known."""
    found, known = [name.strip() for name in text.split(",")], list(known)
    if not set(found) <= set(known):
        raise click.UsageError(f"{option} must be of {','.join(known)}, got {text!r}")
    return found


@click.command()
@click.option("--architectures", default=",".join(ARCHITECTURES), show_default=True)
@click.option("--dtypes", default=",".join(DTYPES), show_default=True)
@click.option("--calls", "names", default="", help="Comma-separated parts of the calls' names, as linear or 7x7; all if empty.")
@click.option("--batch", type=click.IntRange(1), multiple=True, default=[64], show_default=True, help="May be repeated.")
@click.option("--output", type=click.Path(path_type=Path), help="File to write, .md or .csv.")
@click.option("--jobs", type=click.IntRange(1), default=lambda: len(os.sched_getaffinity(0)), help="[default: one a core]")
@click.option("--predict", is_flag=True, help="Compile nothing; print the floor of every call on an H200.")
def main(
    *, architectures: str, dtypes: str, names: str, batch: tuple[int, ...], output: Path | None, jobs: int, predict: bool
) -> None:
    """Compile every kernel that HiFuse launches, and report what it takes of a multiprocessor."""
    console = terminal(width=160)
    if predict:
        return _show_predictions(console)
    on, of = chosen("--architectures", architectures, ahead.LIMITS), chosen("--dtypes", dtypes, DTYPES)
    try:
        calls = choose(names, network_calls())
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if INTERPRETED:
        raise click.ClickException("TRITON_INTERPRET is set, so that nothing would be compiled; run it without")
    entries = report(calls, on, of, batches=batch, jobs=jobs)
    for architecture in on:
        there = [entry for entry in entries if entry.architecture == architecture]
        title = f"{architecture}: {len(there)} compiled kernels"
        show(console, title, COLUMNS, ((entry.cells(), bool(entry.faults)) for entry in there))
    of_cuda = show_cuda(console, on)
    show_traffic(console, calls)
    if output is not None:
        body = [[entry.architecture, *entry.cells(), "; ".join(entry.calls)] for entry in entries]
        write(output, ["architecture", *COLUMNS, "calls"], body)
        other = output.with_stem(f"{output.stem}_cuda")
        write(other, ["architecture", *machine_code.COLUMNS], [[code.architecture, *code.cells()] for code in of_cuda])
        console.print(f"written: {output}, {other}", soft_wrap=True)
    failing = [faults for faults in (*(entry.faults for entry in entries), *(code.faults for code in of_cuda)) if faults]
    noted = sum(bool(entry.notes) for entry in entries)
    console.print(f"{len(entries)} Triton kernels, {noted} without the warpgroup instruction that would fit")
    console.print(f"{len(of_cuda)} CUDA kernels; {len(failing)} kernels fail")
    if failing:
        raise SystemExit(1)
    return None


def _show_predictions(console: Console) -> None:
    head, body = predictions()
    table = Table(*head, title="bfloat16 on an H200 at 4.3 TB/s and 790 TFLOP/s: predicted, not measured", title_justify="left")
    for line in body:
        table.add_row(*line)
    console.print(table)


if __name__ == "__main__":
    main()
