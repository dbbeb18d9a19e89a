"""INT8 on trained weights: what ours and OpenVINO's change on images that neither was calibrated on.

`python -m benchmarks.int8` takes the network that `make demo` trained. Both are calibrated on the same training images, evenly
from all of them. Their logits for all test images are compared with those of the reference in float64, beside float32 and
bfloat16. Nothing is timed here; `benchmarks/engines.py` does that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

import hifuse_fast
from benchmarks.demo.compare import auroc
from benchmarks.demo.task import CLASSES
from benchmarks.peers import PRECISION, optional, quantised, usual, what_runs_in_int8
from benchmarks.saved import Saved
from hifuse_fast import HiFuse, create_model_from_checkpoint, optimize_for_inference
from hifuse_fast.app.remembered import Remembered
from hifuse_fast.bench import table
from hifuse_fast.bench.machine import conditions
from hifuse_fast.bench.network import reference_logits
from hifuse_fast.bench.worker import MissingError
from hifuse_fast.data.images import list_images, load_image
from hifuse_fast.inference.calibrate import differences, spread_of

BATCH = 37  # of the reference in float64, and of ours
Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Judged:
    """An engine on the held-out images, beside the reference in float64.

    Args:
        changed: how many of them it puts into another class.
        logits_error: root mean square, in units of the logits' own spread.
        largest_logits_error: of any logit.
        probability_error: the largest of a probability.
        auroc: the area under the ROC curve, of the second class against the first.
        note: what runs in int8, and by what.
    """

    changed: int
    logits_error: float
    largest_logits_error: float
    probability_error: float
    auroc: float
    note: str = ""


@dataclass(frozen=True)
class Result(Saved):
    """What engines do to a trained network, and what it was found with."""

    calibration: int  #: images that int8 was calibrated on
    held_out: int  #: images that all were judged on
    exact_auroc: float  #: of the reference in float64
    engines: dict[str, Judged]

    @classmethod
    def found(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**values, "engines": {name: Judged(**each) for name, each in values["engines"].items()}}

    def page(self) -> str:
        """The table of the page, and the conditions."""
        head = ["engine", "classes changed", "error of logits", "largest", "largest of a probability", "AUROC", "note"]
        rows = [
            [name, f"{each.changed} of {self.held_out}", f"{each.logits_error:.2%}", f"{each.largest_logits_error:.4f}",
             f"{each.probability_error:.4f}", f"{each.auroc:.4f}", each.note]
            for name, each in self.engines.items()
        ]  # fmt: skip
        return (
            f"{table.markdown(head, rows)}\n\nThe reference in float64 has an AUROC of {self.exact_auroc:.4f}. The error of "
            "logits is their root mean square, in units of the logits' spread. INT8 was calibrated on "
            f"{self.calibration} training images; all were judged on {self.held_out} images of other patients. "
            f"{table.describe(self.conditions)}.\n"
        )


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), default=Path("build/demo"), show_default=True,
              help="Of `make demo`, whose network and images are taken.")  # fmt: skip
@click.option("--calibration", type=click.IntRange(32), default=256, show_default=True, help="Training images to calibrate on.")
@click.option("--results", type=click.Path(path_type=Path), help="JSON file for the result.")
def main(*, folder: Path, calibration: int, results: Path | None) -> None:
    """Judge INT8, ours and OpenVINO's, on the network that `make demo` trained and on images held out."""
    try:
        result = run(folder, calibration)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if results is not None:
        result.write(results)
    click.echo(result.page())


def run(folder: Path, calibration: int) -> Result:
    """Judge every engine that can run here.

    Raises:
        ValueError, OSError: the demo is not in the folder; the network cannot run in int8.
    """
    found = conditions(torch.device("cpu"))
    checkpoint = folder / "run" / "last.safetensors"
    model = create_model_from_checkpoint(checkpoint).eval()
    given = _read(list_images([folder / "images" / "train"]), checkpoint, calibration)
    paths = list_images([folder / "images" / "test"])
    held_out = _read(paths, checkpoint)
    truth = np.array([path.parent.name == CLASSES[1] for path in paths])
    exact = torch.cat([reference_logits(model, each, torch.float64) for each in held_out.split(BATCH)])
    engines: dict[str, Judged] = {}
    for name, prepare in ENGINES.items():
        try:
            forward, note = prepare(model, given)
        except MissingError as reason:
            click.echo(f"{name} is left out: {reason}", err=True)
            continue
        logits = torch.cat([forward(each) for each in held_out.split(1 if name.startswith("openvino") else BATCH)])
        engines[name] = _judge(logits.float(), exact, truth, note)
        click.echo(f"{name}: {engines[name]}", err=True)
    return Result(found, len(given), len(held_out), auroc(truth, _scores(exact)), engines)


def _read(paths: list[Path], checkpoint: Path, count: int | None = None) -> Tensor:
    """Images as the network was trained on them; `count` of them, evenly from all, or all."""
    if not paths:
        raise ValueError("the demo has no images: run `make demo` first")
    remembered = Remembered.of(checkpoint)
    count = min(count or len(paths), len(paths))
    places = torch.linspace(0, len(paths) - 1, count).round().long().tolist()
    return torch.stack([remembered.preprocess(load_image(paths[place], **remembered.reading)) for place in places])


def _judge(logits: Tensor, exact: Tensor, truth: Any, note: str) -> Judged:
    changed, error, largest, probability = differences(logits, exact)
    return Judged(changed, error / spread_of(exact), largest, probability, auroc(truth, _scores(logits)), note)


def _scores(logits: Tensor) -> Any:
    return (logits[:, 1] - logits[:, 0]).double().numpy()


def _ours(model: HiFuse, _: Tensor, *, dtype: torch.dtype) -> tuple[Forward, str]:
    return optimize_for_inference(model, dtype), ""  # type: ignore[return-value]


def _ours_in_int8(model: HiFuse, given: Tensor) -> tuple[Forward, str]:
    frozen = optimize_for_inference(model, torch.int8, calibration=given)
    assert frozen.certificate is not None
    click.echo(str(frozen.certificate), err=True)
    return frozen, what_runs_in_int8(frozen.certificate)  # type: ignore[return-value]


def _openvino_in_int8(model: HiFuse, given: Tensor) -> tuple[Forward, str]:
    """OpenVINO on the official graph, of one image, as `peers.openvino` has it."""
    core = optional("openvino").Core()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.onnx")
        hifuse_fast.export.to_onnx(model, path, image_size=tuple(given.shape[2:]), check=False)
        network = quantised(core.read_model(path), given)
        compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": PRECISION[usual()]})
    note = f"OpenVINO {optional('openvino').__version__.partition('-')[0]}, NNCF {optional('nncf').__version__}"
    return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy()), note


ENGINES: Mapping[str, Callable[[HiFuse, Tensor], tuple[Forward, str]]] = {
    "hifuse_fast float32": partial(_ours, dtype=torch.float32),
    "hifuse_fast bfloat16": partial(_ours, dtype=torch.bfloat16),
    "hifuse_fast int8": _ours_in_int8,
    "openvino int8": _openvino_in_int8,
}

if __name__ == "__main__":
    main()
