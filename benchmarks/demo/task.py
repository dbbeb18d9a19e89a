"""The task: outlines that were rated 4 or 5 against those rated 1 or 2, as image files with patients and a split."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from benchmarks.demo.draw import draw
from benchmarks.demo.readings import Reading
from hifuse_fast.data.check import digest
from hifuse_fast.data.examples import Example, write_examples
from hifuse_fast.data.split import split_examples
from hifuse_fast.files import replacing

CLASSES = ("benign", "suspicious")  #: rated 1 or 2, and 4 or 5
VAL, TEST, SEED = 0.1, 0.2, 0


def label_of(reading: Reading) -> str | None:
    """The class of a reading; None of those rated 3, which are left out."""
    return None if reading.malignancy == 3 else CLASSES[reading.malignancy > 3]


def make_images(
    readings: Sequence[Reading], folder: Path, on_progress: Callable[[int], object] = lambda _: None
) -> list[Example]:
    """Draw each reading that has a class into `folder`/SPLIT/CLASS/PATIENT-NUMBER.png, and list them in `folder`/examples.csv.

    Patients are on one side of the split, and so are images of the same pixels. The same readings give the same files.

    Raises:
        ValueError: there are images in the folder that are not of this task.
    """
    pictures: dict[Path, Image.Image] = {}
    examples = []
    for done, reading in enumerate(readings, 1):
        if label := label_of(reading):
            name = Path(f"{reading.patient}-{reading.number}.png")
            pictures[name] = draw(reading)
            examples.append(Example(name, label, reading.patient, digest=digest(pictures[name])))
        on_progress(done)
    examples = split_examples(examples, VAL, TEST, SEED)
    placed = [replace(each, path=Path(each.split, each.label, each.path)) for each in examples]  # below the folder
    _check_others(folder, {folder / each.path for each in placed})
    for before, each in zip(examples, placed, strict=True):
        (folder / each.path).parent.mkdir(parents=True, exist_ok=True)
        _write(folder / each.path, pictures[before.path])
    write_examples(folder / "examples.csv", placed)
    return placed


def _check_others(folder: Path, own: set[Path]) -> None:
    others = sorted(set(folder.rglob("*.png")) - own)
    if others:
        raise ValueError(
            f"{folder} has {len(others)} images that are not of this task, such as {others[0]}; take another folder"
        )


def _write(path: Path, image: Image.Image) -> None:
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    if not (path.exists() and path.read_bytes() == encoded.getvalue()):
        with replacing(path) as new:
            new.write_bytes(encoded.getvalue())
