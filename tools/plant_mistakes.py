"""Plants mistakes in the shipped CUDA kernels, one at a time, and shows that the emulation or its results tell of each.

tools/mistakes has the mistakes, and the calls that meet them. One is planted in a copy of the kernels, of which the emulated
library is built, and the call runs in all orders and landings. The emulation must say what is wrong, or results must have
other bits than those of the shipped kernels.

    python -m tools.plant_mistakes                 all of them; `make test-all` does the same as tests
    python -m tools.plant_mistakes --only barrier  those whose name has this word

It needs a build folder in which `make test` has built the emulated library.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from tools.mistakes import CALLS, MISTAKES, Mistake

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "native"
NAME = "hifuse_fast._cuda_emulated"

#: What the shipped kernels do in a call, by its name.
Right = Callable[[str], dict[str, list[str]]]

# What no call needs is cut from the copies, which makes them quick to compile: all widths but one, and float16.
CUTS = (
    ("window_attention_launch.h", "if (head_dim <= 16) return", "return"),
    ("local_block.cu", "return launch_local_block<T, kWide>(op, stream);", "return nullptr;"),
    ("local_block.cu", "return local_block_of<f16>(op, stream);", "return nullptr;"),
    ("fuse_path.cu", "return fuse_path_of<f16>(op, stream);", "return nullptr;"),
    ("global_block.cu", "return launch_global_block<T, kWide>(op, stream);", "return nullptr;"),
    ("global_block.cu", "return global_block_of<f16>(op, stream);", "return nullptr;"),
    ("mlp_sm90.cu", "return launch_mlp<MlpKernel<T, 576, 192, 1, 128, 3>>(op, multiprocessors, stream);", "return nullptr;"),
    ("mlp_sm90.cu", "return mlp_of<f16>(op, multiprocessors, stream);", "return nullptr;"),
    ("mixer_sm90.cu", "return launch_mixer<MixerKernel<T, 288>>(op, multiprocessors, stream);", "return nullptr;"),
    ("mixer_sm90.cu", "return mixer_of<f16>(op, multiprocessors, stream);", "return nullptr;"),
)
SOURCES = sorted({source for call in CALLS.values() for source in call.sources})  #: files that are compiled again
_INCLUDE = re.compile(r'^#include ["<]([^">]+)', re.MULTILINE)


@dataclass(frozen=True)
class Commands:
    """How a build folder made the emulated library."""

    compiled: dict[Path, tuple[list[str], Path]]  # of each source: the command, without its output, and the object
    objects: list[Path]
    archive: Path
    compiler: str

    @staticmethod
    def of(build: Path) -> Commands:
        """Of a build folder; FileNotFoundError where the library has not been built there."""
        compiled, objects, compiler = {}, [], ""
        for entry in json.loads((build / "compile_commands.json").read_text()):
            target = Path(entry["output"])
            own = any(f"{name}.dir" in target.parts for name in ("_cuda_emulated", "emulated_kernels"))
            if not own or target.suffix != ".o":  # a precompiled header is no part of the library
                continue
            words = shlex.split(entry["command"])
            compiler, at = words[0], words.index("-o")
            compiled[Path(entry["file"])] = (words[:at], build / target)
            objects.append(build / target)
        archive = build / "csrc/tests/emulation/libhifuse_emulation.a"
        missing = [path for path in (*objects, archive) if not path.exists()]
        if missing or not objects:
            raise FileNotFoundError(f"{build} has no emulated library, `make test` builds it: {missing[:1]}")
        return Commands(compiled, objects, archive, compiler)


def included(source: Path) -> set[str]:
    """The names of a source and of the files beside it that it includes, directly or not."""
    found, left = set(), [source.name]
    while left:
        name = left.pop()
        path = source.parent / name
        if name not in found and path.exists():
            found.add(name)
            left += _INCLUDE.findall(path.read_text())
    return found


def plant(mistake: Mistake | None, folder: Path, commands: Commands, shipped: Path | None = None) -> Path:
    """Build the emulated library with a mistake, or with none, in a folder; return its path.

    `shipped` is the folder of the library without a mistake. Objects that have no mistake in them come from there, or where
    nothing of them is cut for speed from the build.
    """
    original, kernels = ROOT / "csrc/cuda", folder / "cuda"
    shutil.copytree(original, kernels)
    for name, old, new in CUTS:
        text = (kernels / name).read_text()
        if old not in text:
            raise ValueError(f"{name} has no {old!r}")
        (kernels / name).write_text(text.replace(old, new, 1))
    if mistake is not None:
        path = kernels / mistake.file
        path.write_text(mistake.edited(path.read_text()))
    objects = {path: path for path in commands.objects}
    for name in SOURCES if mistake is None else CALLS[mistake.met_by].sources:
        command, object_file = commands.compiled[original / name]
        files = included(kernels / name)
        if mistake is None or mistake.file not in files:
            if not files & {cut for cut, *_ in CUTS}:
                continue
            if shipped is not None:
                objects[object_file] = shipped / f"{name}.o"
                continue
        objects[object_file] = output = folder / f"{name}.o"
        command = [f"-I{kernels}" if word == f"-I{original}" else word for word in command]
        subprocess.run([*command, "-w", "-o", str(output), "-c", str(kernels / name)], check=True)
    library = folder / "library.so"
    linked = [*map(str, objects.values()), str(commands.archive), "-ldl"]
    subprocess.run([commands.compiler, "-shared", "-o", str(library), *linked], check=True)
    return library


def observe(library: Path, call: str) -> dict[str, list[str]]:
    """Run a call with a library in a process of its own. Of each run: what the emulation said, or a hash of the results."""
    command = [sys.executable, "-m", "tools.plant_mistakes", "--observe", str(library), call]
    environment = {**os.environ, "HIFUSE_CUDA_EMULATED": "1"}
    done = subprocess.run(command, check=True, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=300)
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def load(library: Path) -> None:
    """Have the package take this library for the emulated kernels."""
    spec = importlib.util.spec_from_file_location(NAME, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[NAME] = module


def _observe(library: Path, name: str) -> dict[str, list[str]]:
    load(library)

    import torch

    from hifuse_fast.backends.cuda import launch
    from tests.support.emulation import runs

    call, found = CALLS[name], {}
    launch.EMULATED_MULTIPROCESSORS = call.multiprocessors
    for run in runs():
        try:
            results = call.run()
        except RuntimeError as error:
            found[run] = ["error", str(error)]
            continue
        digest = hashlib.sha256()
        for result in results:
            digest.update(result.contiguous().view(torch.uint8).numpy().tobytes())
        found[run] = ["bits", digest.hexdigest()]
    return found


@dataclass(frozen=True)
class Verdict:
    """In how many of the runs the emulation spoke, and in how many of the others results were wrong."""

    told: int
    wrong: int
    message: str

    def line(self, mistake: Mistake) -> str:
        """What is printed of a mistake."""
        told = f"told in {self.told} runs, wrong bits in {self.wrong} others"
        return f"{'caught' if self.caught else 'MISSED'}  {mistake.name}: {told}. {self.message.partition(chr(10))[0]}"

    @property
    def caught(self) -> bool:
        """Whether a test would have failed, in whichever run."""
        return self.told + self.wrong > 0


def judge(found: dict[str, list[str]], right: dict[str, list[str]]) -> Verdict:
    """Of what was observed with a mistake and without one."""
    messages = [text for kind, text in found.values() if kind == "error"]
    wrong = sum(kind == "bits" and [kind, text] != right[run] for run, (kind, text) in found.items())
    return Verdict(len(messages), wrong, messages[0] if messages else "")


def observe_right(library: Path, call: str) -> dict[str, list[str]]:
    """What a library without mistakes does: RuntimeError unless all runs end well, with equal bits."""
    found = observe(library, call)
    if len({tuple(result) for result in found.values()}) != 1 or any(kind != "bits" for kind, _ in found.values()):
        raise RuntimeError(f"the shipped kernels do not pass the call {call}: {found}")
    return found


@click.command()
@click.option("--build", type=click.Path(path_type=Path), default=BUILD, show_default=True, help="Where the library was built.")
@click.option("--only", default="", help="Mistakes whose names, files or calls have this word.")
@click.option("--observe", "observed", nargs=2, default=None, hidden=True)
def main(build: Path, only: str, observed: tuple[str, str] | None) -> None:
    """Plant mistakes in the CUDA kernels and see whether they are caught."""
    if observed is not None:
        path, call = observed
        click.echo(json.dumps(_observe(Path(path), call)))
        return
    commands = Commands.of(build.resolve())
    chosen = [each for each in MISTAKES if any(only in word for word in (each.name, each.file, each.met_by))]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        shipped = plant(None, Path(folder) / "shipped", commands)
        right = functools.cache(functools.partial(observe_right, shipped))
        for number, mistake in enumerate(chosen):
            library = plant(mistake, Path(folder) / str(number), commands, shipped.parent)
            verdict = judge(observe(library, mistake.met_by), right(mistake.met_by))
            missed += not verdict.caught
            click.echo(verdict.line(mistake))
            shutil.rmtree(Path(folder) / str(number))
    if missed:
        raise click.ClickException(f"{missed} mistakes were not caught")


if __name__ == "__main__":
    main()
