"""The command line: `hifuse-fast train | predict | export | bench | info`.

A thin layer: options in, one clear line out when they do not fit. The exit codes are in the help of the command.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import torch

import hifuse_fast
from hifuse_fast.app import export, predict
from hifuse_fast.app.console import BAD_RESULTS, Commands, note, progress
from hifuse_fast.app.network import load_network
from hifuse_fast.app.notes import ImageNotes
from hifuse_fast.app.output import Row, write_csv, write_json
from hifuse_fast.app.remembered import Remembered
from hifuse_fast.backends.select import BACKENDS
from hifuse_fast.commands.options import find_device, quiet_decoders
from hifuse_fast.commands.train import train_command
from hifuse_fast.data import images
from hifuse_fast.data.classes import load_classes
from hifuse_fast.export import DYNAMIC
from hifuse_fast.files import STDOUT, is_stream, writing

_PATH = click.Path(path_type=Path)
_RGB = (float, float, float)
_DTYPE = click.Choice(list(predict.DTYPES))


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


main.add_command(train_command)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def info(as_json: bool) -> None:
    """Show what this machine has, what was built, and which backend serves what, or why it does not."""
    found = hifuse_fast.info()
    click.echo(json.dumps(dataclasses.asdict(found), indent=2) if as_json else str(found))


@main.command("predict")
@click.argument("paths", nargs=-1, required=True, type=_PATH)
@click.option("--checkpoint", required=True, type=_PATH, help="Weights: a torch file, safetensors, or a frozen network.")
@click.option("--classes", type=_PATH, help="Names: the official class_indices.json, or text: a name or 'INDEX NAME' per "
              "line.  [default: as the checkpoint says]")  # fmt: skip
@click.option("--output", "-o", type=_PATH, default=Path(STDOUT), show_default=True, help="File to write, .csv or .json, or -.")
@click.option("--format", "file_format", type=click.Choice(["csv", "json"]),
              help="[default: by the suffix of --output, CSV on stdout]")  # fmt: skip
@click.option("--csv-safe", is_flag=True, help="Put a ' before texts that a spreadsheet might run, which begin with = + - @ or "
              "a control character, and before those that begin with a '. To read one back, take its ' away.")  # fmt: skip
@click.option("--csv-bom", is_flag=True, help="Begin the CSV with a byte order mark, without which Excel misreads UTF-8. "
              "To read it back in Python, say encoding='utf-8-sig'.")  # fmt: skip
@click.option("--model", type=click.Choice(hifuse_fast.list_models()), help="[default: what the checkpoint holds]")
@click.option("--channel-gate", type=click.Choice(["sigmoid", "double_sigmoid"]),
              help="double_sigmoid for official checkpoints from before 2024-01-16.  [default: as the file says]")  # fmt: skip
@click.option("--ema", is_flag=True, help="Take the moving average of the weights, where the checkpoint holds both.")
@click.option("--greyscale", is_flag=True,
              help="For a network of one channel: convert images, and take the first of --mean and --std.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
@click.option("--dtype", type=_DTYPE, help="[default: float32; of a frozen network's file, its own]")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True)
@click.option("--image-size", type=click.IntRange(1),
              help="Side of the centre crop.  [default: as the checkpoint says, else 224]")  # fmt: skip
@click.option("--resize", type=click.IntRange(1),
              help="Shorter side before the crop.  [default: as the checkpoint says, else 256 / 224 of the size]")  # fmt: skip
@click.option("--mean", nargs=3, type=_RGB, help="Of R, G, B in [0, 1].  [default: as the checkpoint says, else 0.5 0.5 0.5]")
@click.option("--std", nargs=3, type=_RGB, help="Of R, G, B in [0, 1].  [default: as the checkpoint says, else 0.5 0.5 0.5]")
@click.option("--max-pixels", type=click.IntRange(1), default=images.MAX_PIXELS, show_default=True,
              help="Larger images are not decoded.")  # fmt: skip
@click.option("--bits", type=click.IntRange(8, 16),
              help="Bits of the data in 16-bit images: 12 where white is 4095.  [default: as it says, else 16]")  # fmt: skip
@click.option("--exif-orientation", is_flag=True, help="Turn images as their orientation says.  [default: pixels as stored]")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Threads that decode images.")
@click.pass_context
def predict_command(
    ctx: click.Context,
    *,
    paths: tuple[Path, ...],
    checkpoint: Path,
    classes: Path | None,
    output: Path,
    file_format: str | None,
    csv_safe: bool,
    csv_bom: bool,
    model: str | None,
    channel_gate: str | None,
    ema: bool,
    greyscale: bool,
    batch_size: int,
    device: str,
    dtype: str | None,
    backend: str,
    image_size: int | None,
    resize: int | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    max_pixels: int,
    bits: int | None,
    exif_orientation: bool,
    workers: int,
) -> None:
    """Classify images: files, and folders with everything below them but for names that begin with a dot.

    An image that cannot be read is named on stderr and has its error in the results; the others are not lost, and the exit code
    is 1. Where the command is stopped or fails, OUTPUT stays as it was, and the rows that are done are kept beside it, for
    result.csv in result.partial.csv. The run ends with how many files of the folders were not read, by suffix, and which have
    more than one page.
    """
    found_files = _find(paths)
    files = found_files.images
    remembered = Remembered.of(checkpoint)
    bits, greyscale = bits or remembered.bits, greyscale or remembered.greyscale
    exif_orientation = exif_orientation or remembered.exif_orientation
    notes = ImageNotes(note, bits)
    preprocess = remembered.prepare(image_size, resize, mean, std)
    as_json = _file_format(output, file_format) == "json"
    if as_json and (csv_safe or csv_bom):
        raise ValueError("--csv-safe and --csv-bom are for CSV, but the output is JSON")
    _check_output(output, [*files, checkpoint, *([] if classes is None else [classes])])
    on = find_device(device)
    quiet_decoders()
    failed: list[Path] = []
    with (
        writing(output, keep_partial=True) as file,
        hifuse_fast.use_backend(backend),
        progress(len(files), shown=not (is_stream(output) and sys.stdout.isatty())) as on_progress,
    ):
        network = load_network(
            checkpoint, on, dtype, backend, size=model, channel_gate=channel_gate, ema=ema, greyscale=greyscale, note=note
        )
        num_classes = network.options.num_classes
        names = load_classes(classes, num_classes) if classes else remembered.names(num_classes)
        rows = predict.predict(
            files, network.model, network.prepare(preprocess), names, batch_size=batch_size, device=on,
            dtype=network.input_dtype, workers=workers, max_pixels=max_pixels, bits=bits, exif_orientation=exif_orientation,
            on_progress=on_progress,
        )  # fmt: skip
        rows = notes.watch(_name_failures(rows, failed))
        if as_json:
            header = {
                "hifuse_fast": hifuse_fast.__version__,
                "torch": torch.__version__,
                "checkpoint": str(checkpoint),
                "model": network.described(),
                "bits": bits,
                "exif_orientation": exif_orientation,
                "preprocess": dataclasses.asdict(preprocess),
                "device": str(on),
                "dtype": network.dtype,
                "backend": backend,
            }
            write_json(file, rows, names, header)
        else:
            write_csv(file, rows, names, safe=csv_safe, bom=csv_bom)
    notes.close()
    if others := found_files.summary_of_others():
        note(f"{others}.")
    if failed:
        note(f"{len(failed)} of {len(files)} images could not be used; the results of the others are complete.")
        ctx.exit(BAD_RESULTS)


@main.command("export")
@click.argument("checkpoint", type=_PATH)
@click.argument("output", type=_PATH)
@click.option("--classes", type=_PATH, help="Names, for the metadata: as of predict.")
@click.option("--dynamic", type=click.Choice(DYNAMIC), multiple=True,
              help="What may differ from call to call; may be given twice. A dynamic size takes minutes to trace.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Where the batch is not dynamic.")
@click.option("--channel-gate", type=click.Choice(["sigmoid", "double_sigmoid"]),
              help="double_sigmoid for official checkpoints from before 2024-01-16.  [default: as the file says]")  # fmt: skip
@click.option("--ema", is_flag=True, help="Take the moving average of the weights, where the checkpoint holds both.")
@click.option("--image-size", type=click.IntRange(1), default=224, show_default=True, help="Side of the images.")
@click.option("--resize", type=click.IntRange(1), help="For the metadata: as of predict.")
@click.option("--mean", nargs=3, type=_RGB, default=(0.5, 0.5, 0.5), show_default=True, help="For the metadata.")
@click.option("--std", nargs=3, type=_RGB, default=(0.5, 0.5, 0.5), show_default=True, help="For the metadata.")
def export_command(
    *,
    checkpoint: Path,
    output: Path,
    classes: Path | None,
    dynamic: tuple[str, ...],
    batch_size: int,
    channel_gate: str | None,
    ema: bool,
    image_size: int,
    resize: int | None,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> None:
    """Write the network of CHECKPOINT as OUTPUT, an ONNX file in float32 with ONNX's own operators.

    Where onnxruntime is installed, the file is run in it, and the largest difference from the reference is shown. The metadata
    of the file have the names of the classes and how images are to be prepared.
    """
    _check_output(output, [checkpoint, *([] if classes is None else [classes])])
    preprocess = images.Preprocess(image_size, resize or round(image_size * 256 / 224), mean, std)
    exported = export.export(
        checkpoint, output, classes, preprocess, channel_gate=channel_gate, ema=ema, dynamic=dynamic, batch_size=batch_size,
        note=note,
    )  # fmt: skip
    click.echo(str(exported))


def _check_output(output: Path | None, inputs: Sequence[Path]) -> None:
    """ValueError where the results would replace what they are made of."""
    for path in inputs:
        if output is not None and output.exists() and path.exists() and output.samefile(path):
            raise ValueError(f"output {output} is one of the inputs, {path}: name another file")


@main.command()
@click.option("--model", type=click.Choice(hifuse_fast.list_models()), default="hifuse_small", show_default=True)
@click.option("--images", "folder", type=_PATH, help="Folder of your own images, besides the samples of scikit-image.")
@click.option("--batch-size", type=click.IntRange(1), multiple=True, default=(1, 8), show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(list(predict.DTYPES)),
    multiple=True,
    help="[default: float32, and bfloat16 where PyTorch has kernels for it: not on an x86 CPU without AVX-512]",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), multiple=True, help="[default: every one that is there]")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: torch's choice]")
@click.option("--seconds", type=click.FloatRange(0), default=150.0, show_default=True, help="Time to measure, in all.")
@click.option("--results", type=_PATH, help="Folder for the rows and their plot.  [default: only the table is shown]")
@click.pass_context
def bench(
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


def _find(paths: tuple[Path, ...]) -> images.Found:
    found = images.find_images(paths)
    if not found.images:
        others = found.summary_of_others()
        also = "" if others is None else f"; {others}"
        raise ValueError(f"no images in {', '.join(map(str, paths))}: looked for {' '.join(sorted(images.SUFFIXES))}{also}")
    return found


def _file_format(output: Path, file_format: str | None) -> str:
    suffix = output.suffix.lower().removeprefix(".")
    if file_format is None and suffix not in ("csv", "json") and is_stream(output):
        return "csv"
    file_format = file_format or suffix
    if file_format not in ("csv", "json"):
        raise ValueError(f"output must end in .csv or .json, or --format must say which of the two it is; got {output}")
    return file_format


def _name_failures(rows: Iterator[Row], failed: list[Path]) -> Iterator[Row]:
    """The rows as they come; one with an error is named on stderr and its file noted in `failed`."""
    for row in rows:
        if row.error is not None:
            failed.append(row.path)
            note(f"{row.path}: {row.error}")
        yield row


if __name__ == "__main__":
    main()
