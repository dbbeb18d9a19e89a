"""`hifuse-fast predict`: images -> a row each."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import torch

import hifuse_fast
from hifuse_fast.app import predict
from hifuse_fast.app.console import BAD_RESULTS, note, progress
from hifuse_fast.app.notes import ImageNotes
from hifuse_fast.app.output import Row, write_csv, write_json
from hifuse_fast.app.remembered import Remembered
from hifuse_fast.commands.options import (
    PATH,
    ImageChoice,
    NetworkChoice,
    check_output,
    image_options,
    network_options,
    quiet_decoders,
)
from hifuse_fast.data import images
from hifuse_fast.data.classes import load_classes
from hifuse_fast.files import STDOUT, is_stream, writing


@click.command("predict")
@click.argument("paths", nargs=-1, required=True, type=PATH)
@click.option("--checkpoint", required=True, type=PATH, help="Weights: a torch file, safetensors, or a frozen network.")
@click.option("--output", "-o", type=PATH, default=Path(STDOUT), show_default=True, help="File to write, .csv or .json, or -.")
@click.option("--format", "file_format", type=click.Choice(["csv", "json"]),
              help="[default: by the suffix of --output, CSV on stdout]")  # fmt: skip
@click.option("--csv-safe", is_flag=True, help="Put a ' before texts that a spreadsheet might run, which begin with = + - @ or "
              "a control character, and before those that begin with a '. To read one back, take its ' away.")  # fmt: skip
@click.option("--csv-bom", is_flag=True, help="Begin the CSV with a byte order mark, without which Excel misreads UTF-8. "
              "To read it back in Python, say encoding='utf-8-sig'.")  # fmt: skip
@network_options
@image_options
@click.pass_context
def predict_command(
    ctx: click.Context,
    *,
    paths: tuple[Path, ...],
    checkpoint: Path,
    output: Path,
    file_format: str | None,
    csv_safe: bool,
    csv_bom: bool,
    choice: NetworkChoice,
    images_as: ImageChoice,
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
    reading = images_as.reading(remembered)
    notes = ImageNotes(note, reading.bits)
    as_json = _file_format(output, file_format) == "json"
    if as_json and (csv_safe or csv_bom):
        raise ValueError("--csv-safe and --csv-bom are for CSV, but the output is JSON")
    check_output(output, [*files, checkpoint, choice.classes])
    on = choice.on
    quiet_decoders()
    failed: list[Path] = []
    with (
        writing(output, keep_partial=True) as file,
        hifuse_fast.use_backend(choice.backend),
        progress(len(files), shown=not (is_stream(output) and sys.stdout.isatty())) as on_progress,
    ):
        network = choice.load(checkpoint, remembered)
        num_classes = network.options.num_classes
        names = load_classes(choice.classes, num_classes) if choice.classes else remembered.names(num_classes)
        rows = predict.predict(
            files, network.model, network.prepare(reading.preprocess), names, batch_size=choice.batch_size, device=on,
            dtype=network.input_dtype, on_progress=on_progress, **reading.of_predict(),
        )  # fmt: skip
        rows = notes.watch(_name_failures(rows, failed))
        if as_json:
            header = {
                "hifuse_fast": hifuse_fast.__version__,
                "torch": torch.__version__,
                "checkpoint": str(checkpoint),
                "model": network.described(),
                "bits": reading.bits,
                "exif_orientation": reading.exif_orientation,
                "preprocess": dataclasses.asdict(reading.preprocess),
                "device": str(on),
                "dtype": network.dtype,
                "backend": choice.backend,
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
