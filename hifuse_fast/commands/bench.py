"""`hifuse-fast bench`: the fast network against the reference on this machine."""

from __future__ import annotations

from pathlib import Path

import click

import hifuse_fast
from hifuse_fast.app.predict import DTYPES
from hifuse_fast.commands.options import PATH


@click.command("bench")
@click.option("--model", type=click.Choice(hifuse_fast.list_models()), default="hifuse_small", show_default=True)
@click.option("--images", "folder", type=PATH, help="Folder of your own images, besides the samples of scikit-image.")
@click.option("--batch-size", type=click.IntRange(1), multiple=True, default=(1, 8), show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPES)),
    multiple=True,
    help="[default: float32, and bfloat16 where PyTorch has kernels for it: not on an x86 CPU without AVX-512]",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), multiple=True, help="[default: every one that is there]")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: torch's choice]")
@click.option("--seconds", type=click.FloatRange(0), default=150.0, show_default=True, help="Time to measure, in all.")
@click.option("--results", type=PATH, help="Folder for the rows and their plot.  [default: only the table is shown]")
@click.pass_context
def bench_command(
    ctx: click.Context,
    *,
    model: str,
    folder: Path | None,
    batch_size: tuple[int, ...],
    dtype: tuple[str, ...],
    device: tuple[str, ...],
    threads: int | None,
    seconds: float,
    results: Path | None,
) -> None:
    """Measure the fast network against the reference on real images, outputs checked.

    --batch-size, --dtype and --device may be given several times; every combination is measured.
    """
    from hifuse_fast.bench import network

    code = network.run(
        model, results=results, images=folder, batch_sizes=batch_size, dtypes=dtype or None, devices=device or None,
        threads=threads, budget_s=seconds,
    )  # fmt: skip
    ctx.exit(code)
