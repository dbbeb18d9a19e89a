"""`hifuse-fast evaluate`: a checkpoint and labelled images -> metrics, predictions and a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

import hifuse_fast
from hifuse_fast import HiFuse
from hifuse_fast.app import predict
from hifuse_fast.app.calibration import fit_temperature, is_determined
from hifuse_fast.app.console import BAD_RESULTS, note, progress
from hifuse_fast.app.evaluate import Answered, Bootstrap, check_labels, gather, measure, mistakes
from hifuse_fast.app.extras import needs
from hifuse_fast.app.gradcam import LAYERS
from hifuse_fast.app.metrics import OVERALL
from hifuse_fast.app.network import Network
from hifuse_fast.app.output import write_csv
from hifuse_fast.app.remembered import Remembered
from hifuse_fast.app.report import render
from hifuse_fast.app.shown import show, with_gradients
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
from hifuse_fast.data.check import check_pixels_apart
from hifuse_fast.data.classes import load_classes
from hifuse_fast.data.examples import Example, read_examples
from hifuse_fast.files import check_replaceable, writing

_FILES = ("metrics.json", "predictions.csv", "report.html")


@click.command("evaluate")
@click.argument("checkpoint", type=PATH)
@click.argument("data", type=PATH)
@click.option("--output", "-o", required=True, type=PATH, help=f"Folder for {', '.join(_FILES)}.")
@click.option("--split", default="test", show_default=True, help="Part of DATA to evaluate, where DATA has parts.")
@click.option("--group-by", help="Column of a CSV, or pattern over the path, that says which images belong together.")
@click.option("--calibrate", type=PATH, help="Labelled images to fit a temperature on, none of which was trained on.")
@click.option("--bootstrap", "resamples", type=click.IntRange(0), default=1000, show_default=True,
              help="Resamples of the intervals; 0 for no intervals.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the resamples.")
@click.option("--mistakes", "most", type=click.IntRange(0), default=12, show_default=True, help="How many the report shows.")
@click.option("--gradcam-layer", type=click.Choice(LAYERS), default="fu4", show_default=True, help="Whose map is shown.")
@csv_safe_option
@network_options
@image_options
@click.pass_context
def evaluate_command(
    ctx: click.Context,
    *,
    checkpoint: Path,
    data: Path,
    output: Path,
    split: str,
    group_by: str | None,
    calibrate: Path | None,
    resamples: int,
    seed: int,
    most: int,
    gradcam_layer: str,
    csv_safe: bool,
    choice: NetworkChoice,
    images_as: ImageChoice,
) -> None:
    """Measure the network of CHECKPOINT on the labelled images of DATA, and write a report.

    DATA is a folder with a folder of images for each class, or a folder of such parts as train, val and test, or a CSV with the
    columns path and label. Images of one group, such as a patient, are drawn together when intervals are found. An image that
    cannot be read is named and counted, and the exit code is 1.
    """
    for module in ("sklearn", "scipy", "matplotlib", "jinja2"):
        needs(module, "evaluate")
    examples = _examples(data, split, group_by)
    fitting = [] if calibrate is None else _examples(calibrate, "val", group_by)
    _check_apart(examples, fitting)
    remembered = Remembered.of(checkpoint)
    reading = images_as.reading(remembered)
    quiet_decoders()
    with hifuse_fast.use_backend(choice.backend):
        model = with_gradients(checkpoint, choice.channel_gate, choice.ema, choice.on) if most else None
        network = choice.load(checkpoint, remembered, reading)
        classes = _classes(choice.classes, remembered, network, examples)
        check_labels([*examples, *fitting], classes)
        if fitting:
            check_pixels_apart("calibrate", fitting, examples, reading.read, reading.workers)
        output.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            check_output(output / name, [checkpoint, data, calibrate, choice.classes])
            check_replaceable(output / name)
        about = _about(checkpoint, data, split, network, choice, reading)
        ask = partial(_ask, network=network, classes=classes, choice=choice, reading=reading)
        answered = ask(examples)
        if fitting:
            about["temperature"], about["calibrated_on"] = _temperature(ask(fitting)), str(calibrate)
            answered = answered.scaled(about["temperature"], classes)
        with progress(resamples, shown=True, of="resamples") as on_progress:
            metrics = measure(answered, classes, Bootstrap(resamples, seed), on_progress)
        indices, prepare = mistakes(answered, most), network.prepare(reading.preprocess)
        pictures = show(answered, indices, reading.read, prepare, reading.preprocess, model, gradcam_layer)
    remarks = _remarks(answered, classes, model, most)
    page = render(
        f"{checkpoint.name} on {data.name}", metrics, answered, classes,
        about=_lines(about, metrics), remarks=remarks, mistakes=pictures,
    )  # fmt: skip
    _write(output, {**about, **metrics, "remarks": remarks}, page, answered, classes, csv_safe=csv_safe)
    for text in remarks:
        note(text)
    for name in OVERALL:
        click.echo(f"{OVERALL[name]:28} {_in_words(metrics['overall'][name])}")
    if answered.failed:
        note(f"{len(answered.failed)} of {len(examples)} images could not be used; the results are of the others.")
        ctx.exit(BAD_RESULTS)


def _examples(data: Path, split: str, group_by: str | None) -> list[Example]:
    """The examples to be evaluated: of that split, where the data have splits."""
    examples = read_examples(data, group_by or "", note)
    splits = sorted({example.split for example in examples} - {""})
    if not splits:
        return examples
    chosen = [example for example in examples if example.split == split]
    if not chosen:
        raise ValueError(f"split must be one that {data} has, {', '.join(splits)}; got {split!r}")
    return chosen


def _check_apart(examples: Sequence[Example], fitting: Sequence[Example]) -> None:
    """ValueError where a temperature would be fitted on what is evaluated."""
    paths, groups = {each.path for each in examples}, {each.group for each in examples} - {""}
    for each in fitting:
        if each.path in paths:
            raise ValueError(f"calibrate must be other images than those that are evaluated, but {each.path} is in both")
        if each.group in groups:
            raise ValueError(f"calibrate must be other groups than those that are evaluated, but {each.group!r} is in both")


def _classes(path: Path | None, remembered: Remembered, network: Network, examples: Sequence[Example]) -> list[str]:
    """The names of the classes: of the file, else the checkpoint, else of the examples, sorted, as in the official script."""
    if path is not None:
        return load_classes(path, network.options.num_classes)
    if remembered.classes is not None:
        return remembered.names(network.options.num_classes)
    names = sorted({example.label for example in examples})
    if len(names) != network.options.num_classes:
        raise ValueError(
            f"the network has {network.options.num_classes} classes, and the images are of {len(names)}: {', '.join(names)}; "
            "--classes names all of them in the order of the network"
        )
    return names


def _ask(
    examples: Sequence[Example], *, network: Network, classes: Sequence[str], choice: NetworkChoice, reading: ImageReading
) -> Answered:
    """What the network says of the examples. Those that cannot be read are named on stderr."""
    with progress(len(examples), shown=True) as on_progress:
        rows = list(predict.predict(
            [example.path for example in examples], network.model, network.prepare(reading.preprocess), classes,
            batch_size=choice.batch_size, device=choice.on, dtype=network.input_dtype, on_progress=on_progress,
            **reading.of_predict(),
        ))  # fmt: skip
    for row in rows:
        if row.error is not None:
            note(f"{row.path}: {row.error}")
    return gather(examples, rows, classes)


def _temperature(answered: Answered) -> float:
    """The temperature that the images determine; ValueError where they determine none."""
    temperature = fit_temperature(answered.outcomes)
    if not is_determined(temperature):
        raise ValueError(
            f"calibrate must be images that determine a temperature; these give {temperature:.3g}, an end of the range"
        )
    return temperature


def _remarks(answered: Answered, classes: Sequence[str], model: HiFuse | None, most: int) -> list[str]:
    """What a reader must know."""
    remarks = []
    seen = {example.label for example in answered.examples}
    if absent := [name for name in classes if name not in seen]:
        remarks.append(f"There are no images of {', '.join(absent)}: averages over classes leave out what these would be.")
    if answered.failed:
        remarks.append(f"{len(answered.failed)} images could not be used, and are in no metric.")
    if answered.groups is None:
        remarks.append("No groups were given: if several images are of one patient, the intervals are too narrow.")
    if most and model is None:
        remarks.append("The network is frozen and has no gradients: the mistakes are shown without Grad-CAM.")
    return remarks


def _about(
    checkpoint: Path, data: Path, split: str, network: Network, choice: NetworkChoice, reading: ImageReading
) -> dict[str, Any]:
    """What was measured, for metrics.json."""
    return {**made_by(checkpoint, network, choice, reading), "data": str(data), "split": split}


def _lines(about: dict[str, Any], metrics: dict[str, Any]) -> dict[str, object]:
    """The same, and the numbers of images, as the page shows it."""
    bootstrap, groups = metrics["bootstrap"], metrics["groups"]
    return {
        "Checkpoint": f"{about['checkpoint']} (SHA-256 {about['checkpoint_sha256']})",
        "Network": f"{about['model']['name']}, {about['model']['num_classes']} classes, {about['dtype']}",
        "Images": f"{metrics['images']} of {about['data']}" + (f", in {groups} groups" if groups is not None else ""),
        "Preparation": ", ".join(f"{name} {value}" for name, value in about["preprocess"].items()),
        "Temperature": f"{about['temperature']:.3f}, fitted on {about['calibrated_on']}" if "temperature" in about else "none",
        "Intervals": f"{bootstrap['resamples']} resamples of {bootstrap['of']}, seed {bootstrap['seed']}"
        if bootstrap["resamples"] else "none",
        "Versions": f"hifuse_fast {about['hifuse_fast']}, torch {about['torch']}, on {about['device']}",
    }  # fmt: skip


def _in_words(metric: dict[str, Any]) -> str:
    if metric["value"] is None:
        return "not defined by these images"
    interval = f"  ({metric['low']:.4f} to {metric['high']:.4f})" if metric.get("low") is not None else ""
    return f"{metric['value']:.4f}{interval}"


def _write(
    output: Path, metrics: dict[str, Any], page: str, answered: Answered, classes: Sequence[str], *, csv_safe: bool
) -> None:
    """The three files; each is whole or not there, and the report comes last."""
    told = [*zip(answered.examples, answered.rows, strict=True), *answered.failed]
    rows = [replace(row, beside=(example.label, example.group)) for example, row in told]
    with writing(output / "predictions.csv") as file:
        write_csv(file, rows, classes, beside=("true", "group"), safe=csv_safe)
    with writing(output / "metrics.json") as file:
        file.write(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    with writing(output / "report.html") as file:
        file.write(page)
