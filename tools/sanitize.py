"""The CUDA kernels under compute-sanitizer, memcheck and racecheck, each op in a small call: `python -m tools.sanitize`.

The exit code is 1 where one of the two finds something. Where compute-sanitizer is not there or does not start, as in many
containers, that is told and is no failure.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import torch

from hifuse_fast.backends.cuda import library, sm90
from hifuse_fast.tuning.calls import DTYPES, Call
from hifuse_fast.tuning.frozen_calls import network_calls
from hifuse_fast.tuning.whole_calls import block_calls

TOOLS = ("memcheck", "racecheck")
FOUND = 9  #: compute-sanitizer's exit code for what it has found
BATCH = 2
STARTS = "import torch; torch.zeros(1, device='cuda').add_(1).item()"


def find() -> str | None:
    """compute-sanitizer: of PATH, of CUDA_HOME, or of the PyPI package nvidia-cuda-sanitizer-api."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    spec = importlib.util.find_spec("nvidia")
    packages = [Path(root) for root in (spec.submodule_search_locations or [] if spec else [])]
    places = [*(path for root in packages for path in sorted(root.glob("*/**/compute-sanitizer")) if path.is_file())]
    found = (shutil.which(str(place)) for place in ("compute-sanitizer", f"{home}/bin/compute-sanitizer", *places))
    return next((place for place in found if place), None)


def calls() -> list[Call]:
    """The network's calls of each op that has CUDA kernels, those on its smallest maps; then those of whole blocks."""
    found: dict[str, list[Call]] = {}
    for call in network_calls():
        if call.has_kernels("cuda"):
            found.setdefault(call.op, []).append(call)
    smallest = [call for each in found.values() for call in each if call.stage == max(other.stage for other in each)]
    return [*smallest, *calls_of_blocks()]


def calls_of_blocks() -> list[Call]:
    """Those that one kernel stands for, which serves large maps alone: blocks of stages 1 and 2, the path of stage 1."""
    local = [call for call in network_calls() if call.op == "prepare_local_block"]
    return [call for call in (*local, *block_calls()) if call.stage < (2 if call.op == "prepare_fuse_path" else 3)]


def calls_of_sm90() -> list[Call]:
    """Those that have kernels for sm_90a too, on the smallest maps that these serve."""
    return [
        call for call in network_calls() if call.op in ("prepare_mlp", "prepare_mixer") and call.stage == 2 and not call.only
    ]


def run() -> None:
    """Call each op in each dtype, forward and with its backward, on the CUDA device."""
    for call in calls():
        _make(call)
    with sm90.taken():
        for call in calls_of_sm90():
            _make(call)


def _make(call: Call) -> None:
    for dtype in DTYPES.values():
        inputs = call.inputs(BATCH, dtype, "cuda")
        call.run(inputs, call.gradient(BATCH, dtype, "cuda") if "forward+backward" in call.modes else None, "cuda")
        torch.cuda.synchronize()
        print(f"{call.name} {dtype}", flush=True)


def check(sanitizer: str, tool: str, *code: str) -> subprocess.CompletedProcess[str]:
    """Python under one tool."""
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(FOUND), sys.executable, *code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@click.command()
@click.option("--run", "inner", is_flag=True, help="Only make the calls.")
def main(*, inner: bool) -> None:
    """Check the kernels, where compute-sanitizer starts."""
    if inner:
        return run()
    if not torch.cuda.is_available() or library.lib is None:
        return click.echo(f"nothing to check: {library.why_missing or 'no CUDA device'}")
    sanitizer = find()
    if sanitizer is None:
        return click.echo("compute-sanitizer was not found: nothing was checked")
    first = check(sanitizer, TOOLS[0], "-c", STARTS)
    if first.returncode:
        return click.echo(f"{sanitizer} does not start here: nothing was checked\n{first.stdout[-2000:]}{first.stderr[-2000:]}")
    failed = []
    for tool in TOOLS:
        done = check(sanitizer, tool, "-m", "tools.sanitize", "--run")
        click.echo(f"{tool}: exit code {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
        failed += [tool] if done.returncode else []
    if failed:
        raise click.ClickException(f"{', '.join(failed)} found something")
    return None


if __name__ == "__main__":
    main()
