"""`hifuse-fast predict`: images -> a row each."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

import click

import hifuse_fast
from hifuse_fast.app import predict
from hifuse_fast.app.console import BAD_RESULTS, note, progress
from hifuse_fast.app.extras import needs
from hifuse_fast.app.gradcam import LAYERS
from hifuse_fast.app.journal import Journal, write_results
from hifuse_fast.app.network import Network
from hifuse_fast.app.notes import ImageNotes
from hifuse_fast.app.output import Row, write_csv, write_json
from hifuse_fast.app.remembered import Remembered
from hifuse_fast.app.share import Share
from hifuse_fast.app.shown import Overlays, with_gradients
from hifuse_fast.commands.options import (
    PATH,
    ImageChoice,
    ImageReading,
    NetworkChoice,
    check_output,
    csv_safe_option,
    image_options,
    made_by,
    network_options,
    quiet_decoders,
)
from hifuse_fast.data import images
from hifuse_fast.data.classes import load_classes
from hifuse_fast.data.listing import check_outside
from hifuse_fast.files import STDOUT, is_stream


@click.command("predict")
@click.argument("paths", nargs=-1, required=True, type=PATH)
@click.option("--checkpoint", required=True, type=PATH, help="Weights: a torch file, safetensors, or a frozen network.")
@click.option("--output", "-o", type=PATH, default=Path(STDOUT), show_default=True, help="File to write, .csv or .json, or -.")
@click.option("--format", "file_format", type=click.Choice(["csv", "json"]),
              help="[default: by the suffix of --output, CSV on stdout]")  # fmt: skip
@csv_safe_option
@click.option("--csv-bom", is_flag=True, help="Begin the CSV with a byte order mark, without which Excel misreads UTF-8. "
              "To read it back in Python, say encoding='utf-8-sig'.")  # fmt: skip
@click.option("--gradcam", type=PATH, help="Folder for a picture of each image, under the Grad-CAM of its class.")
@click.option("--gradcam-layer", type=click.Choice(LAYERS), default="fu4", show_default=True, help="Whose map is shown.")
@click.option("--resume", is_flag=True, help="Go on after the rows of a run that was interrupted.")
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
    gradcam: Path | None,
    gradcam_layer: str,
    resume: bool,
    choice: NetworkChoice,
    images_as: ImageChoice,
) -> None:
    """Classify images: files, and folders with everything below them but for names that begin with a dot.

    An image that cannot be read is named on stderr and has its error in the results; the others are not lost, and the exit code
    is 1. Rows are kept as they come in a file beside OUTPUT, which itself appears whole at the end: where the command was
    stopped, failed or was killed, --resume goes on after them, and OUTPUT is the same. The run ends with how many files of the
    folders were not read, by suffix, and which have more than one page.

    Under torchrun every process takes its share of the images, and OUTPUT is that of one process.
    """
    as_json = _file_format(output, file_format) == "json"
    if as_json and (csv_safe or csv_bom):
        raise ValueError("--csv-safe and --csv-bom are for CSV, but the output is JSON")
    share = Share.of_environment()
    found = _find(paths)
    check_output(output, chain([checkpoint, choice.classes], found.images))
    if gradcam is not None:
        check_outside("gradcam", gradcam, paths)
    journal = _journal(output, share, resume)
    if journal is not None and journal.finished:
        note(f"{output} is finished: there is nothing to resume.")
        return
    remembered = Remembered.of(checkpoint)
    reading = images_as.reading(remembered)
    notes = ImageNotes(note, reading.bits)
    placed = replace(choice, device=str(share.place(choice.on)))
    total, size = len(found.images), choice.batch_size
    own = found.images.take(share.indices(total, size))
    quiet_decoders()
    with (
        hifuse_fast.use_backend(choice.backend),
        progress(len(own), shown=journal is not None or not sys.stdout.isatty()) as on_progress,
    ):
        network = placed.load(checkpoint, remembered, reading)
        num_classes = network.options.num_classes
        names = load_classes(choice.classes, num_classes) if choice.classes else remembered.names(num_classes)
        pictures = _pictures(gradcam, gradcam_layer, resume, checkpoint, placed, network, reading, names, total)
        header = made_by(checkpoint, network, choice, reading)

        def rows_after(kept: int) -> Iterator[Row]:
            rows = predict.predict(
                own[kept:], network.model, network.prepare(reading.preprocess), names, batch_size=size, device=placed.on,
                dtype=network.input_dtype, on_progress=lambda done: on_progress(kept + done), **reading.of_predict(),
            )  # fmt: skip
            return rows if pictures is None else pictures.add(rows, islice(share.indices(total, size), kept, None))

        write = partial(write_json, header=header) if as_json else partial(write_csv, safe=csv_safe, bom=csv_bom)
        write = partial(write, classes=names, beside=() if gradcam is None else ("gradcam",))
        facts = {
            **header, "classes": names, "images": found.images.digest(), "max_pixels": reading.max_pixels,
            "calibration": choice.calibration and str(choice.calibration),
            "gradcam": gradcam and [str(gradcam), gradcam_layer], "csv": not as_json and [csv_safe, csv_bom],
        }  # fmt: skip
        failed = write_results(output, rows_after, write, notes.watch, journal, facts, total, size)
    notes.close()
    if others := found.summary_of_others():
        note(f"{others}.")
    if failed is None:
        note(f"The share {share} is done; the process that ends last writes {output}.")
    elif failed:
        note(f"{failed} of {total} images could not be used; the results of the others are complete.")
        ctx.exit(BAD_RESULTS)


def _journal(output: Path, share: Share, resume: bool) -> Journal | None:
    """Where rows are kept until all are there; None where the output goes on at once."""
    if not is_stream(output):
        return Journal(output, share, resume=resume)
    if resume or share.world > 1:
        raise ValueError(f"output must be a file for {'--resume' if resume else 'several processes'}, got {output}")
    return None


def _pictures(
    folder: Path | None, layer: str, resume: bool, checkpoint: Path, choice: NetworkChoice, network: Network,
    reading: ImageReading, classes: Sequence[str], total: int,
) -> Overlays | None:  # fmt: skip
    """What draws the Grad-CAM of each image, where that is asked for."""
    if folder is None:
        return None
    needs("matplotlib", "evaluate")
    model = with_gradients(checkpoint, choice.channel_gate, choice.ema, choice.on)
    if model is None:
        raise ValueError(f"gradcam needs gradients, and the frozen network {checkpoint} has none: name its checkpoint")
    prepare = network.prepare(reading.preprocess)
    return Overlays(folder, total, classes, reading.read, prepare, reading.preprocess, model, layer, replace=resume)


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
