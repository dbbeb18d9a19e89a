"""`hifuse-fast freeze`: a checkpoint -> the file of a frozen network."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
import torch

from hifuse_fast.app import freeze
from hifuse_fast.app.console import note
from hifuse_fast.app.predict import DTYPES
from hifuse_fast.app.remembered import Remembered
from hifuse_fast.backends.select import BACKENDS
from hifuse_fast.commands.options import (
    PATH,
    ImageChoice,
    calibration_option,
    check_output,
    find_device,
    image_options,
    quiet_decoders,
    read_calibration,
)
from hifuse_fast.inference.configuration import ALGORITHMS

_DTYPES = {**DTYPES, "int8": torch.int8}


@click.command("freeze")
@click.argument("checkpoint", type=PATH)
@click.argument("output", type=PATH)
@click.option("--dtype", type=click.Choice(list(_DTYPES)), default="float32", show_default=True)
@calibration_option
@click.option("--most-changed", type=click.IntRange(0),
              help="With --dtype int8: how many calibration images may change their class.  "
              "[default: as many as in bfloat16]")  # fmt: skip
@click.option("--algorithm", type=click.Choice(ALGORITHMS), default="auto", show_default=True,
              help="direct rounds less, takes longer on a CPU, and needs less memory.")  # fmt: skip
@click.option("--channel-gate", type=click.Choice(["sigmoid", "double_sigmoid"]),
              help="double_sigmoid for official checkpoints from before 2024-01-16.  [default: as the file says]")  # fmt: skip
@click.option("--ema", is_flag=True, help="Take the moving average of the weights, where the checkpoint holds both.")
@click.option("--greyscale", is_flag=True, help="For a network of one channel: convert the calibration images.")
@click.option("--device", default="auto", show_default=True, help="Which it is frozen for: auto, cpu, cuda, cuda:1, ...")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True)
@image_options
def freeze_command(
    *,
    checkpoint: Path,
    output: Path,
    dtype: str,
    calibration: Path | None,
    most_changed: int | None,
    algorithm: str,
    channel_gate: str | None,
    ema: bool,
    greyscale: bool,
    device: str,
    backend: str,
    images_as: ImageChoice,
) -> None:
    """Write the network of CHECKPOINT as OUTPUT, a .safetensors file that is frozen for inference: folded and packed.

    predict and evaluate take the file in place of CHECKPOINT, and so does `hifuse_fast.load_optimized`. With --dtype int8 it is
    calibrated once, here, and the certificate is shown: what int8 changes on the calibration images. These are read and
    prepared as CHECKPOINT says where it was trained here, or as the options say.
    """
    check_output(output, [checkpoint])
    remembered = Remembered.of(checkpoint)
    reading = images_as.reading(remembered)
    quiet_decoders()
    frozen = freeze.freeze(
        checkpoint, output, _DTYPES[dtype], find_device("cpu" if (device, dtype) == ("auto", "int8") else device),
        backend=backend, algorithm=algorithm, channel_gate=channel_gate, ema=ema, greyscale=greyscale or remembered.greyscale,
        calibration=None if calibration is None else partial(read_calibration, folder=calibration, reading=reading),
        most_changed=most_changed, note=note,
    )  # fmt: skip
    if frozen.certificate is not None:
        click.echo(str(frozen.certificate))
    click.echo(f"written: {output}")
