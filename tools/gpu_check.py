"""Everything there is to do on a machine with a GPU, stage by stage: `make gpu-check`, or one of them with STAGE=name.

conformance  each wrapper of a PTX instruction on the GPU and in the emulation of the tests: seconds
build        the compiled libraries, in place, for this GPU alone, with the tools that are there, the CUDA kernels first;
             nothing is downloaded, and without them all the rest runs
sanitizer    the CUDA kernels, each in a small call, under compute-sanitizer's memcheck and racecheck, if it starts here
profile      the time of the frozen network by each backend, kernel by kernel, into benchmarks/results: a minute
parity       the tests that are marked "gpu": those of CUDA kernels, the others, then the slow ones
tune         choices, then tile sizes, into hifuse_fast/backends/tables; goes on where the last run stopped
ops          the ops and blocks by our kernels, then against their peers, into benchmarks/results; goes on where the last run
             stopped
network      the frozen network and a training step, then those that take minutes to compile, then `hifuse-fast bench`; goes on
             where the last run stopped

Each stage has a share of a quarter of an hour (`SECONDS`), and what one leaves the next one has. It keeps what it has when its
time is up. What a step leaves out then is told before, and again when it happens. The report folder gets few files, for a GPU
that is lent may give few back: `check.md`, `logs.zip` with a log a step, and copies of the tables and results, also while a
step runs. The interpreter is the one that runs this. Without a GPU it prints commands.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click
import torch

from benchmarks.gpu_network import OWN as OWN_NETWORKS
from hifuse_fast.bench.machine import usable_cores
from hifuse_fast.bench.turns import OWN

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build" / "gpu-check-logs"  #: where logs and results of tests lie while this runs
KEPT = ("benchmarks/results", "hifuse_fast/backends/tables")  #: folders whose changed files are copied to the report
#: Of a stage. All fit the 15 minutes that a GPU is lent for, whose start is one of them.
SECONDS = {
    "conformance": 70.0,
    "build": 130.0,
    "sanitizer": 40.0,
    "profile": 50.0,
    "parity": 110.0,
    "tune": 190.0,
    "ops": 100.0,
    "network": 150.0,
}
GRACE_S = 30.0  #: that a step with a budget of its own gets to finish what it has begun
INTERRUPTED_S = 10.0  #: that a step whose time is up gets to say what it has found
MOST_TESTERS = 12
IMAGES = 64


@dataclass(frozen=True)
class Step:
    """A command of a stage; `arguments` makes those of the interpreter of the seconds that it has."""

    name: str
    arguments: Callable[[float], list[str]]
    must_pass: bool = True
    dropped: str = "all of it"  #: what is left out when the time is up
    environment: Mapping[str, str] = field(default_factory=dict)  #: variables beside those of all steps


def _fixed(*arguments: str) -> Callable[[float], list[str]]:
    return lambda _: list(arguments)


def conformance(_report: Path) -> list[Step]:
    """It needs a CUDA compiler."""
    return [Step("conformance", _fixed("-m", "tools.conformance"))]


def build(_report: Path) -> list[Step]:
    """Triton needs no library of ours: that one cannot be built is no failure here."""
    command = _fixed("setup.py", "build_ext", "--inplace")
    # In folders of their own, so that the second one does not configure the first one away.
    cuda = {"HIFUSE_CUDA": "1", "HIFUSE_NATIVE": "0", "HIFUSE_BUILD": "build/gpu-check-cuda"}
    native = {"HIFUSE_CUDA": "0", "HIFUSE_BUILD": "build/gpu-check-native"}
    return [
        Step("build", command, must_pass=False, dropped="the CUDA kernels, and the library for CPUs", environment=cuda),
        Step("build_native", command, must_pass=False, dropped="the library for CPUs", environment=native),
    ]


def sanitizer(_report: Path) -> list[Step]:
    """Memcheck, then racecheck."""
    return [Step("sanitizer", _fixed("-m", "tools.sanitize"), dropped="racecheck, which comes after memcheck")]


def profile(_report: Path) -> list[Step]:
    """Of the network that inference is measured on; of CUDA's kernels, which no table takes before they are measured."""
    return [
        Step("profile_cuda", _fixed("-m", "benchmarks.gpu_profile", "--backend", "cuda"), must_pass=False),
        Step("profile", _fixed("-m", "benchmarks.gpu_profile")),
    ]


def parity(_report: Path) -> list[Step]:
    """In processes side by side where pytest-xdist is installed, for most of their time is compiling. Without the options of
    pyproject.toml, which need plugins; a file that needs a package which is not there keeps no other one from running."""
    split = ["-n", str(min(MOST_TESTERS, usable_cores())), "--dist", "worksteal"] if importlib.util.find_spec("xdist") else []

    def step(name: str, marked: str, named: str, dropped: str) -> Step:
        options = ["-o", "addopts=", "-ra", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
        options += [f"--junitxml={LOGS / name}.xml", "-m", marked, *(["-k", named] if named else [])]
        return Step(name, _fixed("-m", "pytest", *options, *split, "tests"), dropped=dropped)

    return [  # CUDA's first: no GPU has run them, and nothing has to be compiled for them
        step("parity_cuda", "gpu and not slow", "cuda", "the tests that have not run, and all others"),
        step("parity", "gpu and not slow", "not cuda", "the tests that have not run, and all slow ones"),
        step("parity_slow", "gpu and slow", "", "the slow tests that have not run"),
    ]


def tune(report: Path) -> list[Step]:
    """Until the time is up. Choices decide more than tile sizes: they are measured first, with the tiles that there are."""

    def step(name: str, options: list[str], dropped: str) -> Step:
        command = ["-m", "hifuse_fast.tuning.tune", *options, "--output", str(report), "--budget"]
        return Step(name, lambda s: [*command, f"{max(0.0, s - GRACE_S):.0f}"], dropped=f"{dropped}; the next run goes on")

    return [
        step("tune_choices", ["--choices"], "the choices that are left, of ops with gradients last, and all tile sizes"),
        step("tune", [], "the tile sizes that are left"),
    ]


def ops(_report: Path) -> list[Step]:
    """Until the time is up: the frozen network's calls by our kernels, then all others, then the peers, which are compiled."""

    def step(name: str, options: list[str], dropped: str) -> Step:
        command = ["-m", "benchmarks.gpu_ops", "--resume", *options, "--limit"]
        return Step(name, lambda s: [*command, f"{max(0.0, s - GRACE_S):.0f}"], dropped=f"{dropped}; the next run goes on")

    own = ["--engines", ",".join(("reference", *(name for name in OWN if name != "native"))), "--dtypes", "bfloat16"]
    return [
        step("ops", own, "the cases that are left, calls with gradients last, and all peers"),
        step("ops_peers", [], "the peers that are left, and float16"),
    ]


def network(report: Path) -> list[Step]:
    """On the samples of scikit-image; where that is not installed, on images made by the golden rule."""
    images = [] if importlib.util.find_spec("skimage") else ["--images", str(report / "images")]
    each = [option for name in ("bfloat16", "float16") for option in ("--dtype", name)]
    common = ["-m", "hifuse_fast.cli", "bench", "--device", "cuda", "--batch-size", "1", "--batch-size", str(IMAGES)]
    common += ["--results", KEPT[0]]
    bench = ["-m", "benchmarks.gpu_network", "--resume", "--models", "hifuse_small"]

    def step(name: str, options: list[str], share: float, dropped: str) -> Step:
        limit = ["--limit"]
        return Step(name, lambda s: [*bench, *options, *limit, f"{max(0.0, share * s - GRACE_S):.0f}"], dropped=dropped)

    # Compiling the network takes minutes a case: what needs none is measured alone before, in two thirds of the time at most.
    own = ["--engines", ",".join(("eager", *OWN_NETWORKS)), "--batch", "1,128,32"]
    compiled = ["--batch", "128", "--dtypes", "bfloat16"]
    return [
        step("network_own", own, 0.67, "the cases that are left, float16 and B = 32 last; the next run goes on"),
        step("network_compile", compiled, 1.0, "the compiled peers that are left; the next run goes on"),
        Step("network", _fixed(*common, *each, "--seconds", "20", *images), dropped="`hifuse-fast bench`"),
    ]


STAGES: dict[str, Callable[[Path], list[Step]]] = {
    "conformance": conformance,
    "build": build,
    "sanitizer": sanitizer,
    "profile": profile,
    "parity": parity,
    "tune": tune,
    "ops": ops,
    "network": network,
}


def make_images(folder: Path) -> None:
    """Images to measure on; what they show does not matter to the time."""
    from PIL import Image

    from hifuse_fast.testing import golden_uniform

    folder.mkdir(parents=True, exist_ok=True)
    for i in range(IMAGES):
        pixels = (255 * golden_uniform(f"bench image {i}", (224, 224, 3))).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{i:02}.png")


class Report:
    """The report folder: `check.md`, `logs.zip`, and copies of what the steps changed in the checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines: list[str] = []
        self._began = time.time()
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(LOGS, ignore_errors=True)
        LOGS.mkdir(parents=True)

    def add(self, step: str, command: str, code: int | None, seconds: float) -> None:
        """One step's outcome and the end of its log."""
        outcome = "cut off" if code is None else "passed" if code == 0 else f"FAILED with {code}"
        tail = (LOGS / f"{step}.log").read_text(errors="replace").splitlines()[-12:]
        head = [f"## {step}: {outcome}, {seconds:.0f} s", "", f"    {command}", ""]
        self._lines += [*head, *(f"    {line}" for line in tail), ""]
        (self.folder / "check.md").write_text("\n".join([f"# {device()}", "", *self._lines]), encoding="utf-8")
        with zipfile.ZipFile(self.folder / "logs.zip", "w", zipfile.ZIP_DEFLATED) as packed:
            for file in sorted(LOGS.iterdir()):
                packed.write(file, file.name)
        self.mirror()

    def mirror(self) -> None:
        """Copy the results and tables that changed since the beginning."""
        for file in itertools.chain.from_iterable((ROOT / name).glob("*.*") for name in KEPT):
            if not file.name.endswith(".tmp") and file.stat().st_mtime >= self._began - 1:
                shutil.copy(file, self.folder / file.name)


def device() -> str:
    """The GPU and the versions."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    return f"{name}, torch {torch.__version__}, Python {sys.version.split()[0]}"


def environment() -> dict[str, str]:
    """The steps' variables: the checkout is imported as it lies, and kernels run on the device."""
    kept = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "HIFUSE_CUDA_EMULATED")}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    if torch.cuda.is_available():
        kept.setdefault("TORCH_CUDA_ARCH_LIST", "{}.{}".format(*torch.cuda.get_device_capability()))
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PIP_NO_INDEX": "1"}


def run_step(step: Step, command: list[str], report: Report, seconds: float) -> int | None:
    """The exit code, None where the step was ended for its time; its output goes to its log."""
    end = time.monotonic() + seconds
    with (LOGS / f"{step.name}.log").open("wb") as log:
        variables = {**environment(), **step.environment}
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log, start_new_session=True)
        while True:
            try:
                return process.wait(timeout=max(0.1, min(5.0, end - time.monotonic())))
            except subprocess.TimeoutExpired:
                report.mirror()
                if time.monotonic() >= end:
                    break
            except BaseException:
                _end(process)
                raise
        _end(process)
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the step and what it started, which is a session of its own; asked first, pytest tells what has failed so far."""
    with contextlib.suppress(subprocess.TimeoutExpired, ProcessLookupError):
        process.send_signal(signal.SIGINT)
        process.wait(timeout=INTERRUPTED_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_stage(name: str, report: Report, end: float) -> bool:
    """Run a stage's steps one by one until the clock is at `end`; whether all of them passed."""
    passed = [_run_until(end, step, report) for step in STAGES[name](report.folder)]
    return all(passed)


def shown(step: Step, command: list[str]) -> str:
    """The command as a shell takes it."""
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in step.environment.items()), shlex.join(command)])


def _run_until(end: float, step: Step, report: Report) -> bool:
    """Whether the step passed, or need not."""
    began = time.monotonic()
    if began >= end:
        click.echo(f"{step.name}: no time left; left out: {step.dropped}")
        return False
    command = [sys.executable, *step.arguments(end - began)]
    click.echo(f"{step.name}: {shown(step, command)}")
    code = run_step(step, command, report, end - began)
    report.add(step.name, shown(step, command), code, time.monotonic() - began)
    outcome = f"cut off; left out: {step.dropped}" if code is None else f"exit code {code}"
    click.echo(f"{step.name}: {outcome}, {time.monotonic() - began:.0f} s")
    return code == 0 or not step.must_pass


@click.command()
@click.option("--stage", default=",".join(STAGES), show_default=True, help="Comma-separated.")
@click.option("--report", "folder", type=click.Path(path_type=Path, file_okay=False), envvar=["REPORT", "OUT"],
              default=Path("build/gpu-check"), show_default=True, help="Folder, also given by REPORT or OUT.")  # fmt: skip
@click.option("--limit", type=click.FloatRange(0), help="Seconds of each stage.  [default: its share of a quarter of an hour]")
@click.option("--total", type=click.FloatRange(0), default=math.inf, help="Seconds of all stages.  [default: their sum]")
def main(*, stage: str, folder: Path, limit: float | None, total: float) -> None:
    """Check, tune and measure on this machine's GPU."""
    names = [name.strip() for name in stage.split(",")]
    if not set(names) <= set(STAGES):
        raise click.UsageError(f"--stage must be of {','.join(STAGES)}, got {stage!r}")
    folder = folder.resolve()
    if not torch.cuda.is_available():
        click.echo("No CUDA device: nothing is run. On a machine with one:")
        for name in names:
            seconds = SECONDS[name] if limit is None else limit
            click.echo(f"{name}, {seconds:.0f} s and what the stages before leave:")
            for step in STAGES[name](folder):
                click.echo(f"  {shown(step, [sys.executable, *step.arguments(seconds)])}")
                click.echo(f"    left out when the time is up: {step.dropped}")
        return
    report = Report(folder)
    if "network" in names and not importlib.util.find_spec("skimage"):
        make_images(folder / "images")
    end, last = time.monotonic(), time.monotonic() + total
    failed = []
    for name in names:
        end += SECONDS[name] if limit is None else limit
        if not run_stage(name, report, min(end, last)):
            failed.append(name)
    report.mirror()
    click.echo(f"report: {folder}")
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}; see {folder / 'check.md'}")


if __name__ == "__main__":
    main()
