"""Whether a pixel of a large image costs as much as one of a small image: `python -m benchmarks.growth`.

One image of 448 x 448 takes turns with the four of 224 x 224 that it is put together from, one of 896 x 896 with sixteen: as
many pixels, and as many multiply-adds but for the head's. Times are for 224 x 224 pixels; `ratio` is what a pixel costs in
small images over what it costs in the large one. Logits are checked first, as those of the other benches are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import torch
from torch import Tensor, nn

from hifuse_fast import create_model, list_models, optimize_for_inference
from hifuse_fast.bench import network, options, samples, table, turns
from hifuse_fast.bench.network import DTYPES, NUM_CLASSES
from hifuse_fast.bench.rows import Row
from hifuse_fast.bench.turns import Candidate
from hifuse_fast.testing import golden_weights

SUITE = "growth"
SMALL = "224 x 224"  #: the engine that the other is compared with
SIDES = (2, 4)  #: of the large images, in small ones
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """`side` times `side` small images of a model, or one large one."""

    name: str
    side: int
    dtype: str
    flop: float
    mode: str = "inference"
    moved: float = 0.0  #: what the network must move is far from what it computes

    @property
    def batch(self) -> int:
        """Small images."""
        return self.side**2


def mosaic(images: Tensor, side: int) -> Tensor:
    """One image [1, C, side H, side W] of side^2 images [side^2, C, H, W], row by row."""
    rows = images.unflatten(0, (side, side))
    large: Tensor = rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return large[None]


def measure(eager: nn.Module, case: Case, pixels: Tensor, limits: turns.Limits, budget_s: float) -> list[Row]:
    """A row for the small images, and one for the large one."""
    dtype = DTYPES[case.dtype]
    fast = optimize_for_inference(eager, dtype=dtype)
    large = f"{case.side * samples.TILE} x {case.side * samples.TILE}"
    candidates = {}
    for name, images in ((SMALL, pixels), (large, mosaic(pixels, case.side))):
        exact = network.reference_logits(eager, images, torch.float64)
        check = network.check_logits(fast(images), network.reference_logits(eager, images, dtype), exact)
        candidates[name] = Candidate(partial(fast, images.to(dtype)), check.ok, check.error, check.note)
    return turns.measure(SUITE, case, candidates, CPU, limits=limits, budget_s=budget_s, baseline=SMALL, per="image")


def run(model: str, dtypes: Sequence[str], sides: Sequence[int], budget_s: float) -> list[Row]:
    """The rows of a model; `budget_s` for each case."""
    eager = create_model(model, num_classes=NUM_CLASSES).eval()
    golden_weights(eager)
    pixels = samples.load(max(sides) ** 2)[1]
    limits = turns.limits(CPU, {name: DTYPES[name] for name in dtypes})
    found = []
    for side in sides:
        flop = 2.0 * network.multiply_adds(model, side * samples.TILE)
        for dtype in dtypes:
            found += measure(eager, Case(model, side, dtype, flop), pixels[: side**2], limits, budget_s)
    return found


@click.command()
@click.option(
    "--models", default="hifuse_small", show_default=True, help="Comma-separated: hifuse_tiny, hifuse_small, hifuse_base."
)
@click.option("--dtypes", help=options.DTYPES_HELP)
@click.option("--budget", type=click.FloatRange(0), default=30.0, show_default=True, help="Seconds of timing a case.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("benchmarks/results"), help="Folder of the rows.")
def main(*, models: str, dtypes: str | None, budget: float, output: Path) -> None:
    """Time the frozen network on large images against as many pixels in small ones, on the CPU."""
    names = options.dtypes(dtypes, CPU)
    for model in options.names("--models", models, list_models()):
        found = run(model, names, SIDES, budget)
        turns.report(table.console(), found, f"{model}, 224 x 224 pixels", output)


if __name__ == "__main__":
    main()
