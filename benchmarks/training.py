"""A training step on the CPU against PyTorch: `python -m benchmarks.training`, part of `make bench-cpu`.

Engines, checks and floor are those of the training cases of `gpu_network`, whose docstring says them: the loss and the gradient
of every weight, no optimizer. The network lies in memory as `create_model` makes it, channels first, which is what PyTorch is
the fastest with on a CPU. bfloat16 is timed where the CPU computes in it. Memory is what a step adds to the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
import torch

from benchmarks import gpu_network
from benchmarks.gpu_network import Case
from hifuse_fast import list_models
from hifuse_fast.bench import options, table, turns
from hifuse_fast.bench.network import DTYPES
from hifuse_fast.bench.rows import Row

SUITE = "training"
ENGINES = tuple(gpu_network.ENGINES["training"])
CPU = torch.device("cpu")


def measure(case: Case, engines: Sequence[str], limits: turns.Limits, budget_s: float) -> list[Row]:
    """The rows of a case, an engine each."""
    found = gpu_network.measure(case, engines, CPU, limits=limits, budget_s=budget_s)
    return [replace(row, suite=SUITE) for row in found]


@click.command()
@click.option(
    "--models", default="hifuse_tiny", show_default=True, help="Comma-separated: hifuse_tiny, hifuse_small, hifuse_base."
)
@click.option("--batch", default="8", show_default=True, help="Images a step, comma-separated.")
@click.option("--dtypes", help=options.DTYPES_HELP)
@click.option("--engines", default=",".join(ENGINES), help="Comma-separated.  [default: all]")
@click.option("--budget", type=click.FloatRange(0), default=180.0, show_default=True, help="Seconds of timing a case.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("benchmarks/results"), help="Folder of the rows.")
def main(*, models: str, batch: str, dtypes: str | None, engines: str, budget: float, output: Path) -> None:
    """Time a training step on the CPU. torch.compile takes minutes to get ready for each case."""
    names = options.dtypes(dtypes, CPU)
    chosen = options.names("--engines", engines, ENGINES)
    limits = turns.limits(CPU, {name: DTYPES[name] for name in names})
    for model in options.names("--models", models, list_models()):
        for dtype in names:
            for size in options.batch_sizes(batch):
                found = measure(Case(model, size, dtype, "training"), chosen, limits, budget)
                turns.report(table.console(), found, f"{model}, a training step", output)


if __name__ == "__main__":
    main()
