"""The command line: `hifuse-fast data | train | evaluate | predict | freeze | export | bench | info`.

A thin layer: options in, one clear line out when they do not fit. The exit codes are in the help of the command. Each command
is a file of `commands/`.
"""

from __future__ import annotations

import dataclasses
import json

import click

import hifuse_fast
from hifuse_fast.app.console import Commands
from hifuse_fast.commands.bench import bench_command
from hifuse_fast.commands.data import data_command
from hifuse_fast.commands.evaluate import evaluate_command
from hifuse_fast.commands.export import export_command
from hifuse_fast.commands.freeze import freeze_command
from hifuse_fast.commands.predict import predict_command
from hifuse_fast.commands.train import train_command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(hifuse_fast.__version__, prog_name="hifuse-fast")
def main() -> None:
    """HiFuse for medical image classification, fast on CPUs and GPUs.

    \b
    Exit codes:
      0    done
      1    done, but some images could not be used; of `bench`, an output was wrong
      2    wrong usage or wrong input, told in one line
      70   an unexpected error: a defect, with its traceback
      129, 130, 143   stopped by SIGHUP, SIGINT (Ctrl-C), SIGTERM
      141  whoever read the output went away, as in `| head`
    """


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def info(as_json: bool) -> None:
    """Show what this machine has, what was built, and which backend serves what, or why it does not."""
    found = hifuse_fast.info()
    click.echo(json.dumps(dataclasses.asdict(found), indent=2) if as_json else str(found))


for command in (
    data_command, train_command, evaluate_command, predict_command, freeze_command, export_command, bench_command,
):  # fmt: skip
    main.add_command(command)

if __name__ == "__main__":
    main()
