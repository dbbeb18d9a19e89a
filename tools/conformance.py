"""Compares each function of csrc/cuda/ptx.cuh and ptx_hopper.cuh on a GPU with its twin in the emulation.

The same small kernels (csrc/tests/conformance) are compiled by nvcc, for this GPU's architecture alone, and for the emulation.
Both are given the same inputs. Moves, layouts, conversions and products of small integers must give equal bits; approximate
functions must stay within their documented bounds.

    python -m tools.conformance               builds, runs and compares
    python -m tools.conformance --gpu FILE --emulated FILE    compares what two runs wrote
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray

from hifuse_fast.tuning import conformed

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = {"gpu": "csrc/tests/conformance/conformance", "emulated": "csrc/tests/emulation/conformance_emulated"}


@dataclass(frozen=True)
class Case:
    """What one small kernel gave: words of 32 bits; float32 where `bound` is not 0, which then limits relative differences."""

    bound: float
    words: NDArray[np.uint32]


def read(path: Path) -> dict[str, Case]:
    """The cases of a file by name: a line each, of its bound, the number of words, the words in hexadecimal, and its name."""
    cases = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        bound, count, digits, name = line.split(" ", maxsplit=3)
        words = np.frombuffer(bytes.fromhex(digits), dtype=">u4").astype(np.uint32)
        if len(words) != int(count):
            raise ValueError(f"{path}, line {number}: {len(words)} words where {count} were announced")
        cases[name] = Case(float.fromhex(bound), words)
    return cases


def difference(gpu: Case, emulated: Case) -> str | None:
    """What differs between two runs of a case, or None."""
    if gpu.words.shape != emulated.words.shape:
        return f"{len(gpu.words)} words on the GPU, {len(emulated.words)} in the emulation"
    if emulated.bound == 0.0:
        wrong = gpu.words != emulated.words
        allowed = "equal bits are wanted"
    else:
        found, wanted = (case.words.view(np.float32).astype(np.float64) for case in (gpu, emulated))
        with np.errstate(all="ignore"):
            relative = np.abs(found - wanted) / np.abs(wanted)
        wrong = ~((found == wanted) | (relative <= emulated.bound))
        allowed = f"a relative difference of {emulated.bound:.3g} is allowed"
    if not wrong.any():
        return None
    first = int(np.argmax(wrong))
    there = f"word {first} is {gpu.words[first]:08x} on the GPU and {emulated.words[first]:08x} in the emulation"
    return f"{int(wrong.sum())} of {len(wrong)} words differ; {there}; {allowed}"


def compare(gpu: dict[str, Case], emulated: dict[str, Case]) -> dict[str, str | None]:
    """What differs, by case; None where nothing does. The emulation has every case, a GPU those of its architecture."""
    unknown = {name: "the emulation has no such case" for name in gpu if name not in emulated}
    return {name: difference(gpu[name], case) for name, case in emulated.items() if name in gpu} | unknown


def run(build: Path, architecture: str) -> dict[str, Path]:
    """Build both programs in a folder, the one for GPUs for an architecture such as "9.0"; run them, and return their files."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    cmake, ninja = (shutil.which(tool, path=path) for tool in ("cmake", "ninja"))
    if cmake is None:
        raise click.ClickException("cmake was not found")
    environment = {**os.environ, "TORCH_CUDA_ARCH_LIST": architecture}
    options = ["-DHIFUSE_CUDA=ON", "-DHIFUSE_TESTS=ON", "-DHIFUSE_PYTHON=OFF"]
    options += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
    subprocess.run([cmake, "--fresh", "-S", str(ROOT), "-B", str(build), *options], check=True, env=environment)
    targets = [Path(program).name for program in PROGRAMS.values()]
    subprocess.run([cmake, "--build", str(build), "--parallel", "--target", *targets], check=True, env=environment)
    files = {}
    for where, program in PROGRAMS.items():
        files[where] = build / f"{where}.txt"
        subprocess.run([str(build / program), str(files[where])], check=True)
    return files


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def _architecture() -> str:
    if not torch.cuda.is_available():
        raise click.ClickException("there is no CUDA device; --gpu and --emulated compare what other runs wrote")
    return "{}.{}".format(*torch.cuda.get_device_capability())


@click.command()
@click.option("--build", type=click.Path(path_type=Path), default=Path("build/conformance"), help="Folder of the build.")
@click.option("--gpu", type=click.Path(path_type=Path, exists=True), help="A file that the run on a GPU wrote.")
@click.option("--emulated", type=click.Path(path_type=Path, exists=True), help="A file that the emulation wrote.")
def main(build: Path, gpu: Path | None, emulated: Path | None) -> None:
    """Compare the CUDA kernels' building blocks on this GPU with their emulation."""
    if (gpu is None) != (emulated is None):
        raise click.UsageError("--gpu and --emulated go together")
    noted = gpu is None or emulated is None
    if gpu is None or emulated is None:
        conformed.note(_device(), passed=False)  # until it has passed
        files = run(build, _architecture())
        gpu, emulated = files["gpu"], files["emulated"]
    found, known = read(gpu), read(emulated)
    if not found:
        raise click.ClickException(f"{gpu} has no cases")
    results = compare(found, known)
    for name, what in results.items():
        click.echo(f"{'ok' if what is None else 'DIFFERS':8s}{name}{'' if what is None else ': ' + what}")
    if missing := [name for name in known if name not in found]:
        click.echo(f"Not of this GPU's architecture: {', '.join(missing)}.")
    failed = sum(what is not None for what in results.values())
    click.echo(f"{len(results) - failed} of {len(results)} cases conform.")
    if failed:
        sys.exit(1)
    if noted:
        conformed.note(_device(), passed=True)


if __name__ == "__main__":
    main()
