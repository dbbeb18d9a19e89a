"""The network bench: the reference and the fast network on real images, checked, timed in turns, and written down."""

from __future__ import annotations

import contextlib
import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hifuse_fast import create_model, list_models, use_backend
from hifuse_fast.backends.native.library import lib
from hifuse_fast.bench import cuda, machine, plot, rows, samples, table, timing
from hifuse_fast.bench.rows import Row, Verdict
from hifuse_fast.inference.serve import can_freeze, freeze
from hifuse_fast.testing import errors, golden_weights, relative_error

NUM_CLASSES = 7
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FLOAT32_ERROR = 1e-4  # relative, of the logits, over some 120 layers; the lower precisions obey the tolerance rule

Forward = Callable[[Tensor], Tensor]
Engine = Callable[[nn.Module], Forward]


def backend_engine(backend: str) -> Engine:
    """The network with every op served by `backend`."""

    def prepare(network: nn.Module) -> Forward:
        def forward(images: Tensor) -> Tensor:
            with use_backend(backend):
                logits: Tensor = network(images)
            return logits

        return forward

    return prepare


def fast_engine(network: nn.Module) -> Forward:
    """The network frozen by `optimize_for_inference`. Where none of our kernels serves that, each op on its fastest backend.

    Warns where freezing is refused.
    """
    parameter = next(network.parameters())
    if not can_freeze(parameter.device, parameter.dtype):
        return backend_engine("auto")(network)
    return freeze(network, parameter.dtype, partial(warnings.warn, stacklevel=2))


#: The engines in the order of the table. The first is what the others are compared with. Each gets the same network.
ENGINES: dict[str, Engine] = {"reference": backend_engine("reference"), "hifuse_fast": fast_engine}


def run(
    model: str = "hifuse_small",
    *,
    results: Path | None = None,
    images: Path | None = None,
    batch_sizes: Sequence[int] = (1, 8),
    dtypes: Sequence[str] | None = None,
    devices: Sequence[str] | None = None,
    threads: int | None = None,
    budget_s: float = 150.0,
    console: Console | None = None,
    engines: Mapping[str, Engine] = ENGINES,
) -> int:
    """Measure `model` on real images: milliseconds an image of the reference and of the fast network, side by side.

    Every engine's logits are compared with those of the reference in float64 before it is timed. A wrong engine gets no time,
    is shown as failed, and makes the exit code 1. In lower precisions weights and images are cast once, before.

    Weights come from the golden rule. They are the same everywhere, and their biases, norms and running statistics are not
    neutral, as those of a new network are. So an engine that forgets one of them cannot pass.

    Args:
        model: a name of `hifuse_fast.list_models()`.
        results: folder for `<device>.csv` and the picture `<device>.png|svg`, made when missing; None writes nothing.
        images: a folder of the user's own images, used besides the samples of scikit-image; None for the samples alone.
        batch_sizes: images per call, each at least 1.
        dtypes: of "float32", "bfloat16", "float16"; None for what is usual on each device (`machine.usual_dtypes`).
        devices: of "cpu", "cuda"; None for the CPU and, where there is one, the CUDA device.
        threads: CPU threads; None for torch's choice.
        budget_s: seconds of timing in all, shared evenly by the cases (device, dtype, batch); preparation comes on top.
        console: where the table and the progress bar go; None for the terminal.
        engines: what to measure, by name; the first is the one the others are compared with.

    Returns:
        The exit code: 0, or 1 when an engine's output is wrong.

    Raises:
        ValueError, FileNotFoundError: an argument that does not fit, named, before any work.
    """
    _check(model, batch_sizes, dtypes, threads=threads, budget_s=budget_s)
    devices = _check_devices(devices)
    files = {name: results / f"{machine.device_slug(torch.device(name))}.csv" for name in devices} if results else {}
    for file in files.values():
        rows.read(file)  # a damaged one is found before the work
    console = console or table.console()
    pixels = samples.load(max(batch_sizes), images)[1]
    chosen = {name: dtypes or machine.usual_dtypes(torch.device(name)) for name in devices}
    cases = sum(map(len, chosen.values())) * len(batch_sizes)
    with _settings(threads), _Bar(console, cases, budget_s) as bar:
        bar.step("the reference in float64")
        subject = make_subject(model, pixels)
        options: dict[str, Any] = {"batch_sizes": batch_sizes, "engines": engines, "bar": bar}
        measured = {
            name: [row for dtype in chosen[name] for row in measure(subject, torch.device(name), dtype, **options)]
            for name in devices
        }
    for name, new in measured.items():
        _report(console, new, files.get(name))
    return int(any(row.ms_p50 is None for new in measured.values() for row in new))


@dataclass(frozen=True)
class Subject:
    """What is measured: the network, its images [B, 3, 224, 224], their exact logits, multiply-adds an image."""

    model: str
    network: nn.Module
    pixels: Tensor
    exact: Tensor
    multiply_adds: int


def make_subject(model: str, pixels: Tensor) -> Subject:
    """The network `model` with golden weights, and what there is to know of it on `pixels`."""
    network = create_model(model, num_classes=NUM_CLASSES).eval()
    golden_weights(network)
    return Subject(model, network, pixels, reference_logits(network, pixels, torch.float64), multiply_adds(model))


@torch.inference_mode()
def reference_logits(network: nn.Module, pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """The logits of the reference in `dtype` on the CPU."""
    return backend_engine("reference")(copy.deepcopy(network).to(dtype))(pixels.to(dtype))


@torch.inference_mode()
def multiply_adds(model: str, size: int = samples.TILE, **options: Any) -> int:
    """Multiply-adds of convolutions, linears and attention products for one image, counted on the reference without data."""
    network = create_model(model, num_classes=NUM_CLASSES, device="meta", **options).eval()
    with FlopCounterMode(display=False) as counter:
        backend_engine("reference")(network)(torch.empty(1, 3, size, size, device="meta"))
    return int(counter.get_total_flops()) // 2


@torch.inference_mode()
def measure(
    subject: Subject, device: torch.device, dtype: str, *, batch_sizes: Sequence[int], engines: Mapping[str, Engine], bar: _Bar
) -> list[Row]:
    """The rows of one device and dtype, case by case."""
    bar.step(f"{device.type} {dtype}: the arithmetic peak")
    peak = machine.arithmetic_peak(device, DTYPES[dtype])
    network = copy.deepcopy(subject.network).to(device, DTYPES[dtype])
    forwards = {name: prepare(network) for name, prepare in engines.items()}
    found = []
    for batch in batch_sizes:
        bar.step(f"{device.type} {dtype}, batch {batch}: outputs")
        pixels = subject.pixels[:batch].to(device, DTYPES[dtype])
        outputs, memory = _first_calls(forwards, pixels, device)
        reference = next(iter(outputs.values()))
        checks = {name: check_logits(logits, reference, subject.exact[:batch]) for name, logits in outputs.items()}
        calls = {name: partial(forwards[name], pixels) for name, check in checks.items() if check.ok}
        bar.step(f"{device.type} {dtype}, batch {batch}: times")
        with machine.Neighbours() as neighbours:
            timings = _time(calls, device, bar)
        flop = 2.0 * subject.multiply_adds * batch
        common: dict[str, Any] = {
            **asdict(machine.conditions(device)),
            **{"suite": "network", "case": subject.model, "dtype": dtype, "batch": batch, "mode": "inference", "per": "image"},
        }
        for name, check in checks.items():
            figures = rows.figures(
                timings.get(name), timings.get(next(iter(engines))), batch=batch, calls=batch, flop=flop, floor_s=flop / peak
            )
            rise = memory[name] if check.ok else None
            mib = None if rise is None else _weights_mib(forwards[name], network) + rise
            note = ", ".join(filter(None, (check.note, neighbours.note)))
            found.append(Row(**common, **figures, engine=name, peak_mib=mib, error=check.error, note=note))
    return found


def _first_calls(
    forwards: Mapping[str, Forward], pixels: Tensor, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, float | None]]:
    """The outputs, and what the first call of each engine adds to memory. A later call may find its maps there already."""
    outputs: dict[str, Tensor] = {}
    memory = {
        name: machine.peak_memory(lambda name=name, forward=forward: outputs.update({name: forward(pixels).cpu()}), device)  # type: ignore[misc]
        for name, forward in forwards.items()
    }
    return outputs, memory


def _weights_mib(forward: Forward, network: nn.Module) -> float:
    """MiB of the weights of the engine, if it is a module of its own; else of the network that it was given."""
    module = forward if isinstance(forward, nn.Module) else network
    return sum(tensor.nbytes for tensor in itertools.chain(module.parameters(), module.buffers())) / 2**20


def _time(calls: Mapping[str, Callable[[], Tensor]], device: torch.device, bar: _Bar) -> dict[str, timing.Timing]:
    if not calls:  # all of them wrong
        return {}
    timer = cuda.timer(device)
    # On a GPU the first calls of a shape choose algorithms and capture a graph.
    return timing.interleave(calls, budget_s=bar.budget_s, warmup=3 if timer else 1, timer=timer, on_round=bar.fraction)


def check_logits(logits: Tensor, reference: Tensor, exact: Tensor) -> Verdict:
    """Judge `logits` against `exact`: float32 within 1e-4 of the largest, lower precisions by the tolerance rule.

    The note says how often the class is the same; this is not judged, because a wrong class without a wrong logit is a tie.
    """
    error = relative_error(logits, exact)
    ok = error <= FLOAT32_ERROR if logits.dtype == torch.float32 else errors(logits, reference, exact).ok
    same = int((logits.argmax(1) == exact.argmax(1)).sum())
    return Verdict(ok, error, f"top-1 {same}/{len(exact)}" + ("" if ok else ", wrong output"))


def _report(console: Console, new: list[Row], file: Path | None) -> None:
    caption = (
        f"{table.describe(new[0])}. Error: largest of the logits' against float64. Floor: the network's multiply-adds at the "
        "rate of the best matrix product of this run. Peak: weights and what the call adds."
    )
    console.print(table.terminal(new, table.NETWORK, f"{new[0].case}, inference, 224 x 224", caption))
    if warning := table.busy(new):
        console.print(warning, style="yellow")
    if file is None:
        return
    rows.update(file, new)
    written = [file, *plot.network(new, file)]
    console.print("written: " + ", ".join(map(str, written)), soft_wrap=True)


def _check(
    model: str, batch_sizes: Sequence[int], dtypes: Sequence[str] | None, *, threads: int | None, budget_s: float
) -> None:
    if model not in list_models():
        raise ValueError(f"model must be one of {', '.join(list_models())}, got {model!r}")
    if not batch_sizes or min(batch_sizes) < 1:
        raise ValueError(f"batch_sizes must be numbers of at least 1, got {list(batch_sizes)}")
    if dtypes is not None and (not dtypes or not set(dtypes) <= set(DTYPES)):
        raise ValueError(f"dtypes must be of {', '.join(DTYPES)}, got {list(dtypes)}")
    most = machine.usable_cores() if lib is None else int(lib.usable_cores())  # the library knows the quota
    if threads is not None and not 1 <= threads <= most:
        raise ValueError(f"threads must be from 1 to {most}, the cores of this process within its CPU quota, got {threads}")
    if not budget_s >= 0:
        raise ValueError(f"budget_s must be at least 0, got {budget_s}")


def _check_devices(devices: Sequence[str] | None) -> Sequence[str]:
    """The devices to measure on, all there are for None."""
    if devices is None:
        return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if not devices or not set(devices) <= {"cpu", "cuda"}:
        raise ValueError(f"devices must be of cpu, cuda, got {list(devices)}")
    if "cuda" in devices and not torch.cuda.is_available():
        raise ValueError("devices: there is no CUDA device that torch can use")
    return devices


@contextlib.contextmanager
def _settings(threads: int | None) -> Iterator[None]:
    """The thread count, and cuDNN at its best within the precision that the row names (TF32 is not float32)."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, benchmark=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(before)


class _Bar:
    """The progress bar: as long as the timing is expected to take, the preparation a part of it."""

    def __init__(self, console: Console, cases: int, budget_s: float) -> None:
        self.budget_s = budget_s / cases  # of one case
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True)
        self._steps = 1 + 3 * cases
        self._task: TaskID = self._progress.add_task("", total=self._steps)
        self._begun = 0

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, description: str) -> None:
        """Begin the next step."""
        self._progress.update(self._task, description=description, completed=self._begun)
        self._begun += 1

    def fraction(self, done: float) -> None:
        """Tell how much of the current step is done."""
        self._progress.update(self._task, completed=self._begun - 1 + done)
