"""`hifuse-fast data`: the download of a published data set -> a folder of splits."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from hifuse_fast.app.console import note, progress
from hifuse_fast.commands.options import PATH
from hifuse_fast.data.arrange import arrange
from hifuse_fast.data.published import DATA_SETS


@click.command("data")
@click.argument("name", type=click.Choice(list(DATA_SETS)))
@click.argument("source", type=PATH)
@click.argument("dest", type=PATH)
@click.option("--copy", is_flag=True, help="Copy files.  [default: links into SOURCE; of archives always files]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the split.")
@click.option("--by-image", is_flag=True, help="Let images of one lesion be in several parts, as a published split may.")
@click.option("--allow-other-counts", is_flag=True, help="Go on where SOURCE has other numbers of images than are published.")
def data_command(
    *, name: str, source: Path, dest: Path, copy: bool, seed: int, by_image: bool, allow_other_counts: bool
) -> None:
    """Arrange the public download SOURCE of a data set into splits, DEST, and show its counts beside the published ones.

    Only counts are published, and no lists of files: the split is this package's own, drawn by the seed. DEST has a file
    train.toml, and `hifuse-fast train --config DEST/train.toml --output RUN` trains on it. Nothing is downloaded.
    """
    total = sum(DATA_SETS[name].counts.values())
    with progress(total, shown=True) as on_progress:
        tables = arrange(
            name, source, dest, copy=copy, seed=seed, by_image=by_image, allow_other_counts=allow_other_counts,
            on_progress=on_progress,
        )  # fmt: skip
    for fold, rows in tables.items():
        table = Table(*rows[0], title=str(dest / fold))
        for row in rows:
            table.add_row(*map(str, row.values()))
        Console(width=120).print(table)
        note(f"Train with: hifuse-fast train --config {dest / fold / 'train.toml'} --output RUN")
