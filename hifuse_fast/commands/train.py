"""`hifuse-fast train`: labelled images -> a network, in the folder of a run."""

from __future__ import annotations

from pathlib import Path

import click

from hifuse_fast.app.console import note
from hifuse_fast.app.training.flags import given, training_flags
from hifuse_fast.commands.options import PATH, find_device, quiet_decoders


@click.command("train")
@click.argument("data", required=False, type=PATH)
@click.option("--output", "-o", required=True, type=PATH, help="Folder of the run.")
@click.option("--config", "toml", type=PATH, help="TOML file of settings, named as the flags; flags win.")
@click.option("--resume", is_flag=True, help="Continue the run in OUTPUT where it stopped, with the same bits.")
@click.option("--override", is_flag=True, help="Resume with other settings than before, where they are harmless.")
@training_flags
def train_command(*, data: Path | None, output: Path, toml: Path | None, resume: bool, override: bool, **flags: object) -> None:
    """Train a network on DATA, and keep what comes of it in OUTPUT.

    DATA is a folder {train,val,test}/CLASS/*, or CLASS/*, which is split; or a CSV file with the columns path and label, and
    group and split where they are known. The defaults are those of the official script. Under torchrun every process takes its
    share of each batch.

    Ctrl-C ends the run after the step, and --resume continues it.
    """
    from hifuse_fast.app.training.train import train

    quiet_decoders()
    settings = given({**flags, "data": data and str(data)})
    train(output, settings, toml=toml, resume=resume, override=override, find_device=find_device, note=note)
