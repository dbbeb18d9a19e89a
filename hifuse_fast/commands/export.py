"""`hifuse-fast export`: a checkpoint -> an ONNX file."""

from __future__ import annotations

from pathlib import Path

import click

from hifuse_fast.app import export
from hifuse_fast.app.console import note
from hifuse_fast.app.remembered import Remembered
from hifuse_fast.commands.options import PATH, check_output
from hifuse_fast.export import DYNAMIC

_RGB = (float, float, float)


@click.command("export")
@click.argument("checkpoint", type=PATH)
@click.argument("output", type=PATH)
@click.option("--classes", type=PATH, help="Names, for the metadata: as of predict.  [default: as the checkpoint says]")
@click.option("--dynamic", type=click.Choice(DYNAMIC), multiple=True,
              help="What may differ from call to call; may be given twice. A dynamic size takes minutes to trace.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Where the batch is not dynamic.")
@click.option("--channel-gate", type=click.Choice(["sigmoid", "double_sigmoid"]),
              help="double_sigmoid for official checkpoints from before 2024-01-16.  [default: as the file says]")  # fmt: skip
@click.option("--ema", is_flag=True, help="Take the moving average of the weights, where the checkpoint holds both.")
@click.option("--image-size", type=click.IntRange(1), help="Side of the images.  [default: as the checkpoint says, else 224]")
@click.option("--resize", type=click.IntRange(1), help="For the metadata: as of predict.")
@click.option("--mean", nargs=3, type=_RGB, help="For the metadata: as of predict.")
@click.option("--std", nargs=3, type=_RGB, help="For the metadata: as of predict.")
def export_command(
    *,
    checkpoint: Path,
    output: Path,
    classes: Path | None,
    dynamic: tuple[str, ...],
    batch_size: int,
    channel_gate: str | None,
    ema: bool,
    image_size: int | None,
    resize: int | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
) -> None:
    """Write the network of CHECKPOINT as OUTPUT, an ONNX file in float32 with ONNX's own operators.

    Where onnxruntime is installed, the file is run in it, and the largest difference from the reference is shown. The metadata
    of the file have the names of the classes and how images are to be prepared, as CHECKPOINT says where it was trained here.
    """
    check_output(output, [checkpoint, classes])
    preprocess = Remembered.of(checkpoint).prepare(image_size, resize, mean, std)
    exported = export.export(
        checkpoint, output, classes, preprocess, channel_gate=channel_gate, ema=ema, dynamic=dynamic, batch_size=batch_size,
        note=note,
    )  # fmt: skip
    click.echo(str(exported))
