"""Mistakes in the CUDA kernels of products, and whether the emulation or the results tell of each; see tools/plant_mistakes.py.

python -m tools.product_mistakes                 all of them; `make test-all` does the same as tests
python -m tools.product_mistakes --only barrier  those whose name has this word
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import click

from tools.mistakes import Mistake
from tools.plant_mistakes import BUILD, ROOT, Commands, in_process, judge, load, passed

SOURCE = "product_bf16.cu"
_KERNEL, _ROWS, _RESULTS = "product.cuh", "product_rows.cuh", "product_results.cuh"
_LEFT, _NORM = "struct LeftRows", "struct RowNorm"

#: Those of `call` "tiles" are met by a linear of several tiles, those of "parts" where blocks have a part of a sum each.
MISTAKES = (
    Mistake("no wait for a step", _KERNEL, "", "cp_async_wait<kStages - 2>();", "cp_async_wait<kStages - 1>();", "tiles"),
    Mistake("no barrier around a step", _KERNEL, "", "__syncthreads();  // this stage is there", "// ", "tiles"),
    Mistake("a step is filled while it is read", _KERNEL, "", "start(next);", "start(stage);", "tiles"),
    Mistake(
        "no barrier before results take the stages' place", _KERNEL, "", "__syncthreads();  // nobody reads", "// ", "tiles"
    ),
    Mistake("no wait for the residual", _RESULTS, "void finish(", "cp_async_wait<0>();", "", "tiles"),
    Mistake("no barrier before results are stored", _RESULTS, "put_pooled(tile, x);", "__syncthreads();", "", "tiles"),
    Mistake("a row of the weight too many", _ROWS, "start_weight(", "n < p.columns", "n <= p.columns", "tiles"),
    Mistake("a row of the map too many", _ROWS, _LEFT, "r < p.rows ?", "r <= p.rows ?", "tiles"),
    Mistake("channels beyond the map", _ROWS, _LEFT, "is_on_map(j) && left > 0", "is_on_map(j)", "tiles"),
    Mistake("no __syncwarp before statistics are read", _ROWS, _NORM, "__syncwarp();", "", "tiles"),
    Mistake("two blocks write one part", _KERNEL, "float* sums(", "int64_t(part) * gridDim.x", "int64_t(0)", "parts"),
    Mistake("a part begins a step late", _KERNEL, "alone ?", "int(blockIdx.y) * p.steps_of_part", "blockIdx.y", "parts"),
)


def plant(mistake: Mistake | None, folder: Path, commands: Commands) -> Path:
    """Build the emulated library with a mistake, or with none, in a folder; return its path."""
    original, kernels = ROOT / "csrc/cuda", folder / "cuda"
    shutil.copytree(original, kernels)
    if mistake is not None:
        path = kernels / mistake.file
        path.write_text(mistake.edited(path.read_text()))
    command, object_file = commands.compiled[original / SOURCE]
    command = [f"-I{kernels}" if word == f"-I{original}" else word for word in command]
    output, library = folder / "planted.o", folder / "library.so"
    subprocess.run([*command, "-w", "-o", str(output), "-c", str(kernels / SOURCE)], check=True)
    objects = [str(output if path == object_file else path) for path in commands.objects]
    subprocess.run([commands.compiler, "-shared", "-o", str(library), *objects, str(commands.archive), "-ldl"], check=True)
    return library


def observe(library: Path, call: str) -> dict[str, list[str]]:
    """Run a call with a library in a process of its own. Of each run: what the emulation said, or a hash of the results."""
    return in_process("tools.product_mistakes", library, call)


def _observe(library: Path, call: str) -> dict[str, list[str]]:
    load(library)

    import torch

    from hifuse_fast.backends.cuda import launch, product
    from tests.support.emulation import runs

    # 132 rows are two tiles, 104 columns two; 232 channels are eight steps, of which the last one is not full.
    rows, columns, depth = ((1, 11, 12), 104, 232) if call == "tiles" else ((1, 3, 5), 24, 232)
    if call == "parts":
        product.SHORTEST, launch.EMULATED_MULTIPROCESSORS = 2, 1000
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(torch.bfloat16)

    x, weight, bias, residual = draw(*rows, depth), draw(columns, depth), draw(columns), draw(*rows, columns)
    found = {}
    for run in runs():
        try:
            out = torch.empty_like(residual)
            product.product([x], weight, bias, out, norm="row", eps=1e-5, activation="gelu", residual=residual)
        except RuntimeError as error:
            found[run] = ["error", str(error)]
            continue
        found[run] = ["bits", hashlib.sha256(out.view(torch.uint8).numpy().tobytes()).hexdigest()]
    return found


def observe_right(library: Path, call: str) -> dict[str, list[str]]:
    """What a library without mistakes does: RuntimeError unless all runs end well, with equal bits."""
    return passed(observe(library, call), call)


@click.command()
@click.option("--build", type=click.Path(path_type=Path), default=BUILD, show_default=True, help="Where the library was built.")
@click.option("--only", default="", help="Mistakes whose names have this word.")
@click.option("--observe", "observed", nargs=2, default=None, hidden=True)
def main(build: Path, only: str, observed: tuple[str, str] | None) -> None:
    """Plant mistakes in the CUDA kernels of products and see whether they are caught."""
    if observed is not None:
        click.echo(json.dumps(_observe(Path(observed[0]), observed[1])))
        return
    commands = Commands.of(build.resolve())
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        shipped = plant(None, Path(folder) / "shipped", commands)
        right = {call: observe_right(shipped, call) for call in ("tiles", "parts")}
        for number, mistake in enumerate(each for each in MISTAKES if only in each.name):
            verdict = judge(observe(plant(mistake, Path(folder) / str(number), commands), mistake.call), right[mistake.call])
            missed += not verdict.caught
            click.echo(verdict.line(mistake))
            shutil.rmtree(Path(folder) / str(number))
    if missed:
        raise click.ClickException(f"{missed} mistakes were not caught")


if __name__ == "__main__":
    main()
