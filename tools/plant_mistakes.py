"""Plants mistakes in the shipped CUDA kernels, one at a time, and shows that the emulation or its results tell of each.

A mistake is one edit of a kernel's file. The edit is made in a copy, of which the emulated library is built, and a small call
runs in all orders and landings. The emulation must say what is wrong, or results must have other bits than those of the shipped
kernel.

    python -m tools.plant_mistakes                 all of them; `make test-all` does the same as tests
    python -m tools.plant_mistakes --only barrier  those whose name has this word

It needs a build folder in which `make test` has built the emulated library.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "native"
NAME = "hifuse_fast._cuda_emulated"

#: What the shipped kernels do in a call, by its name and whether the backward runs too.
Right = Callable[[str, bool], dict[str, list[str]]]

# What one call needs: the copies are compiled for this width alone, which makes them quick to compile.
NARROW = ("window_attention_launch.h", "if (head_dim <= 16) return", "return")


@dataclass(frozen=True)
class Call:
    """A call of window attention in bfloat16, so that a block of threads has four windows or more."""

    window: int
    shift: int
    head_dim: int
    num_heads: int
    shape: tuple[int, int, int]


CALLS = {"whole": Call(7, 3, 32, 1, (3, 12, 19)), "blocks": Call(9, 4, 8, 1, (2, 11, 20))}


@dataclass(frozen=True)
class Mistake:
    """An edit: of `old`, at its first place behind `behind`, into `new`. `call` and `backward` say which call meets it."""

    name: str
    file: str
    behind: str
    old: str
    new: str
    call: str = "whole"
    backward: bool = False

    def edited(self, text: str) -> str:
        """The text of the file with the mistake in it."""
        start = text.find(self.behind)
        at = text.find(self.old, start + len(self.behind)) if start >= 0 else -1
        if at < 0:
            raise ValueError(f"mistake {self.name!r}: {self.file} has no {self.old!r} behind {self.behind!r}")
        return text[:at] + self.new + text[at + len(self.old) :]


_WHOLE, _BLOCKS = "struct WindowAttentionForwardWhole", "struct WindowAttentionForwardBlocks"
_FORWARD, _BACKWARD = "window_attention_forward.cuh", "window_attention_backward.cuh"
_BACKWARD_BLOCKS, _WINDOWS = "window_attention_backward_blocks.cuh", "window_attention_windows.cuh"
_SUMS, _PARTS = "window_attention_sums.cuh", "sum_of_parts.cu"
_STAGE = "__syncthreads();  // this stage is there"

MISTAKES = (
    Mistake("no wait for copies", _FORWARD, _WHOLE, "cp_async_wait<0>();", "cp_async_wait<1>();"),
    Mistake("no barrier around a stage", _FORWARD, _WHOLE, _STAGE, "// "),
    Mistake("a stage is filled while it is read", _FORWARD, _WHOLE, "shared.q[stage ^ 1]", "shared.q[stage]"),
    Mistake("no __syncwarp between put and store", _FORWARD, "rows.put(shared.q[stage], out, factor);", "__syncwarp();", ""),
    Mistake("one window too many", _FORWARD, _WHOLE, "index + int(gridDim.y) < s.windows", "index < s.windows"),
    Mistake("rows beyond the window not zeroed", _FORWARD, _WHOLE, "clear_rows<kTokens, kThreads>(shared.q, 3 * kStages);", ""),
    Mistake(
        "a copy nobody waits for",
        _FORWARD,
        _WHOLE,
        "const float factor[2]",
        "cp_async_16(&shared.v[stage ^ 1].chunk[0], p.qkv.data, true); const float factor[2]",
    ),
    Mistake("two blocks write one window", _FORWARD, _WHOLE, "Window::at(s.grid, blockIdx.y)", "Window::at(s.grid, 0)"),
    Mistake("some threads pass no barrier", _FORWARD, _WHOLE, _STAGE, "if (threadIdx.x < 96) " + _STAGE),
    Mistake("some lanes pass no __syncwarp", _FORWARD, _WHOLE, "__syncwarp();", "if (threadIdx.x % 2) __syncwarp();"),
    Mistake("rows beyond the window are stored", _WINDOWS, "Targets targets(", "token < this->tokens", "true"),
    Mistake("padded tokens are stored", _WINDOWS, "Targets targets(", "t.stored[j] && at.on_map(s.grid)", "t.stored[j]"),
    Mistake("a row too many on the map", _WINDOWS, "struct Place", "y < grid.rows.length", "y <= grid.rows.length"),
    Mistake(
        "a key too many in a window",
        "window_attention_scores.cuh",
        "struct WindowBias",
        "key < kTokens ? table",
        "key <= kTokens ? table",
    ),
    Mistake("no barrier around a block of keys", _FORWARD, _BLOCKS, _STAGE, "// ", call="blocks"),
    Mistake(
        "a block of keys is filled while it is read",
        _FORWARD,
        _BLOCKS,
        "int(last), stage ^ 1",
        "int(last), stage",
        "blocks",
    ),
    Mistake("no __syncwarp before rows are stored", _FORWARD, "rows.put(shared.q[window_stage]", "__syncwarp();", "", "blocks"),
    Mistake(
        "channels beyond the head are read",
        _WINDOWS,
        "load_tokens(",
        "token < tokens && c < chunks",
        "token < tokens",
        "blocks",
    ),
    Mistake(
        "a key too many in a block",
        "window_attention_scores.cuh",
        "struct TableBias",
        "at < tokens ?",
        "at <= tokens ?",
        "blocks",
    ),
    Mistake("no wait in the backward", _BACKWARD, "", "cp_async_wait<0>();", "cp_async_wait<1>();", backward=True),
    Mistake("no barrier around a stage in the backward", _BACKWARD, "", _STAGE, "// ", backward=True),
    Mistake("no barrier before p is read", _BACKWARD, "", "__syncthreads();  // p and ds are there", "// ", backward=True),
    Mistake(
        "no __syncwarp before dv is stored",
        _BACKWARD,
        "rows.put(shared.v[stage], dv, one);",
        "__syncwarp();",
        "",
        backward=True,
    ),
    Mistake("no __syncwarp before dk is written", _BACKWARD, "of_head + 2 * stride);", "__syncwarp();", "", backward=True),
    Mistake("columns beyond the window not zeroed", _BACKWARD, "", "clear_columns(shared.ds);", "", backward=True),
    Mistake("sums of padded tokens not zeroed", _BACKWARD, "", "shared.padded.clear();", "", backward=True),
    Mistake("no barrier before the last sums", _BACKWARD, "// By way of", "__syncthreads();", "", backward=True),
    Mistake("no barrier before sums are read", _BACKWARD, "if (!p.table_parts) return;", "__syncthreads();", "", backward=True),
    Mistake(
        "two blocks write one part",
        _BACKWARD,
        "const int entries",
        "int64_t(blockIdx.y) * entries",
        "0 * entries",
        backward=True,
    ),
    Mistake(
        "a query too many in the table's sums", _SUMS, "sum_of_entries(", "query < count", "query <= count", "blocks", True
    ),
    Mistake("no barrier before parts are added", _PARTS, "struct SumOfParts", "__syncthreads();", "", backward=True),
    Mistake("a result too many of the parts", _PARTS, "struct SumOfParts", "i >= count", "i > count", backward=True),
    Mistake("no barrier around keys in the backward", _BACKWARD_BLOCKS, "", _STAGE, "// ", "blocks", True),
    Mistake(
        "no barrier around queries in the backward",
        _BACKWARD_BLOCKS,
        "struct WindowAttentionBackwardKeys",
        _STAGE,
        "// ",
        "blocks",
        True,
    ),
    Mistake(
        "no wait for queries in the backward",
        _BACKWARD_BLOCKS,
        "struct WindowAttentionBackwardKeys",
        "cp_async_wait<0>();",
        "cp_async_wait<1>();",
        "blocks",
        True,
    ),
    Mistake(
        "no __syncwarp before rows of k are stored",
        _BACKWARD_BLOCKS,
        "// the warp has read its rows of k and v",
        "__syncwarp();",
        "",
        "blocks",
        True,
    ),
    # The right instructions in a wrong order, of wrong lanes, or at wrong places.
    Mistake(
        "the wait comes behind the barrier",
        _FORWARD,
        _WHOLE,
        "cp_async_wait<0>();\n      __syncthreads();",
        "__syncthreads(); cp_async_wait<0>();",
    ),
    Mistake("half of the lanes shuffle", _FORWARD, _WHOLE, "raise(top, x);", "if (threadIdx.x % 32 < 16) raise(top, x);"),
    Mistake(
        "rows of another warp are written", _WINDOWS, "void put(", "pair + Tile::kEightRows", "pair + 2 * Tile::kEightRows"
    ),
    Mistake(
        "a row of a matrix between two chunks",
        "tiles.cuh",
        "left_of_rows(",
        "&tile.at(row, chunk)",
        "(char*)&tile.at(row, chunk) + 8",
    ),
    Mistake("the seam a row too far", "window_attention_scores.cuh", "region_of(", "row >= edge", "row > edge"),
    Mistake(
        "a padded token is read",
        _WINDOWS,
        "load_tokens(",
        "cp_async_16(&tile.at(token - first, c), row ?",
        "cp_async_16(&tile.at(token - first, c), true ?",
        "blocks",
    ),
    Mistake("a window too many in a share", _FORWARD, _WHOLE, "index < s.windows; index +=", "index <= s.windows; index +="),
    Mistake(
        "statistics of the other stage",
        _BACKWARD_BLOCKS,
        "struct WindowAttentionBackwardKeys",
        "(shared.statistics[stage]);",
        "(shared.statistics[stage ^ 1]);",
        "blocks",
        True,
    ),
    Mistake(
        "a warp adds to the sums of another",
        _SUMS,
        "struct PaddedSums",
        "&sums[threadIdx.x / 32]",
        "&sums[threadIdx.x / 64]",
        backward=True,
    ),
    Mistake(
        "keys and queries exchanged in the bias",
        "window_attention_scores.cuh",
        "struct TableBias",
        "of_column - code[i]",
        "code[i] - of_column",
        "blocks",
        True,
    ),
)


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
            if not any(f"{name}.dir" in target.parts for name in ("_cuda_emulated", "emulated_kernels")):
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


def plant(mistake: Mistake | None, folder: Path, commands: Commands) -> Path:
    """Build the emulated library with a mistake, or with none, in a folder; return its path."""
    kernels = folder / "cuda"
    shutil.copytree(ROOT / "csrc/cuda", kernels)
    name, old, new = NARROW
    launch = (kernels / name).read_text()
    if old not in launch:
        raise ValueError(f"{name} has no {old!r}")
    (kernels / name).write_text(launch.replace(old, new, 1))
    if mistake is not None:
        path = kernels / mistake.file
        path.write_text(mistake.edited(path.read_text()))
    planted = []
    original = ROOT / "csrc/cuda"
    backward = mistake is None or mistake.backward
    for source in (
        original / "window_attention_forward_bf16.cu",
        original / "window_attention_backward_bf16.cu",
        original / "window_attention.cu",
        original / "sum_of_parts.cu",
    ):
        if not backward and "forward" not in source.name:
            continue
        command, object_file = commands.compiled[source]
        command = [f"-I{kernels}" if word == f"-I{original}" else word for word in command]
        output = folder / f"{source.name}.o"
        subprocess.run([*command, "-w", "-o", str(output), "-c", str(kernels / source.name)], check=True)
        planted.append((object_file, output))
    replaced = {object_file for object_file, _ in planted}
    objects = [str(output) for _, output in planted] + [str(path) for path in commands.objects if path not in replaced]
    library = folder / "library.so"
    subprocess.run([commands.compiler, "-shared", "-o", str(library), *objects, str(commands.archive), "-ldl"], check=True)
    return library


def observe(library: Path, call: str, backward: bool) -> dict[str, list[str]]:
    """Run a call with a library in a process of its own. Of each run: what the emulation said, or a hash of the results."""
    command = [
        sys.executable,
        "-m",
        "tools.plant_mistakes",
        "--observe",
        str(library),
        call,
        "backward" if backward else "forward",
    ]
    environment = {**os.environ, "HIFUSE_CUDA_EMULATED": "1"}
    output = subprocess.run(
        command, check=True, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=300
    ).stdout
    found: dict[str, list[str]] = json.loads(output.splitlines()[-1])
    return found


def _observe(library: Path, name: str, backward: bool) -> dict[str, list[str]]:
    spec = importlib.util.spec_from_file_location(NAME, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[NAME] = module

    import torch

    from hifuse_fast.ops import window_attention
    from tests.support.emulation import runs

    call = CALLS[name]
    generator = torch.Generator().manual_seed(0)
    width, entries = call.num_heads * call.head_dim, (2 * call.window - 1) ** 2

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(torch.bfloat16)

    inputs = [draw(*call.shape, 3 * width), draw(entries, call.num_heads).float(), draw(3 * width)]
    grad = draw(*call.shape, width)
    found = {}
    for run in runs():
        leaves = [each.clone().requires_grad_(backward) for each in inputs]
        options = {"num_heads": call.num_heads, "window_size": call.window, "shift_size": call.shift}
        try:
            out = window_attention(leaves[0], leaves[1], qkv_bias=leaves[2], backend="cuda", **options)
            results = [out.detach(), *(torch.autograd.grad(out, leaves, grad) if backward else ())]
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

    @property
    def caught(self) -> bool:
        """Whether a test would have failed, in whichever run."""
        return self.told + self.wrong > 0


def judge(found: dict[str, list[str]], right: dict[str, list[str]]) -> Verdict:
    """Of what was observed with a mistake and without one."""
    messages = [text for kind, text in found.values() if kind == "error"]
    wrong = sum(kind == "bits" and [kind, text] != right[run] for run, (kind, text) in found.items())
    return Verdict(len(messages), wrong, messages[0] if messages else "")


def observe_right(library: Path, call: str, backward: bool) -> dict[str, list[str]]:
    """What a library without mistakes does: RuntimeError unless all runs end well, with equal bits."""
    found = observe(library, call, backward)
    if len({tuple(result) for result in found.values()}) != 1 or any(kind != "bits" for kind, _ in found.values()):
        raise RuntimeError(f"the shipped kernels do not pass the call {call}: {found}")
    return found


@click.command()
@click.option("--build", type=click.Path(path_type=Path), default=BUILD, show_default=True, help="Where the library was built.")
@click.option("--only", default="", help="Mistakes whose names have this word.")
@click.option("--observe", "observed", nargs=3, default=None, hidden=True)
def main(build: Path, only: str, observed: tuple[str, str, str] | None) -> None:
    """Plant mistakes in the CUDA kernels and see whether they are caught."""
    if observed is not None:
        path, call, direction = observed
        click.echo(json.dumps(_observe(Path(path), call, direction == "backward")))
        return
    commands = Commands.of(build.resolve())
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        shipped = plant(None, Path(folder) / "shipped", commands)
        right = {(call, backward): observe_right(shipped, call, backward) for call in CALLS for backward in (False, True)}
        for number, mistake in enumerate(each for each in MISTAKES if only in each.name):
            library = plant(mistake, Path(folder) / str(number), commands)
            verdict = judge(observe(library, mistake.call, mistake.backward), right[mistake.call, mistake.backward])
            missed += not verdict.caught
            told = f"told in {verdict.told} runs, wrong bits in {verdict.wrong} others"
            click.echo(
                f"{'caught' if verdict.caught else 'MISSED'}  {mistake.name}: {told}. {verdict.message.partition(chr(10))[0]}"
            )
            shutil.rmtree(Path(folder) / str(number))
    if missed:
        raise click.ClickException(f"{missed} mistakes were not caught")


if __name__ == "__main__":
    main()
