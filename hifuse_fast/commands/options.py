"""Options that several commands take, and what becomes of them."""

from __future__ import annotations

import functools
import hashlib
import logging
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image

import hifuse_fast
from hifuse_fast.app.console import note
from hifuse_fast.app.network import Network, load_network
from hifuse_fast.app.predict import DTYPES
from hifuse_fast.app.remembered import Remembered
from hifuse_fast.backends.select import BACKENDS
from hifuse_fast.data import images
from hifuse_fast.data.samples import ImageError, Window, check_window
from hifuse_fast.inference.calibrate import LEAST_IMAGES

PATH = click.Path(path_type=Path)
_RGB = (float, float, float)
MOST_CALIBRATION = 512  #: images that are read to calibrate


@dataclass(frozen=True)
class NetworkChoice:
    """Which network of a checkpoint, and where and how it runs."""

    classes: Path | None
    model: str | None
    channel_gate: str | None
    ema: bool
    greyscale: bool
    batch_size: int
    device: str
    dtype: str | None
    calibration: Path | None
    backend: str

    @cached_property
    def on(self) -> torch.device:
        """The device; ValueError where there is none of that name."""
        return find_device(self.device)

    def load(self, checkpoint: Path, remembered: Remembered, reading: ImageReading) -> Network:
        """See `load_network`."""
        calibration = None
        if self.calibration is not None:
            calibration = partial(read_calibration, folder=self.calibration, reading=reading)
        return load_network(
            checkpoint, self.on, self.dtype, self.backend, size=self.model, channel_gate=self.channel_gate, ema=self.ema,
            greyscale=self.greyscale or remembered.greyscale, calibration=calibration, note=note,
        )  # fmt: skip


@dataclass(frozen=True)
class ImageReading:
    """How images are read and prepared."""

    preprocess: images.Preprocess
    max_pixels: int
    bits: int
    exif_orientation: bool
    window: Window | None
    workers: int

    def read(self, path: Path) -> Image.Image:
        """The image of a file."""
        return images.load_image(
            path, self.max_pixels, bits=self.bits, exif_orientation=self.exif_orientation, window=self.window
        )

    def of_predict(self) -> dict[str, Any]:
        """What `predict` is told of it."""
        return {name: getattr(self, name) for name in ("max_pixels", "bits", "exif_orientation", "window", "workers")}


@dataclass(frozen=True)
class ImageChoice:
    """What a user said of how images are read and prepared; None where that is left to the checkpoint."""

    image_size: int | None
    resize: int | None
    mean: tuple[float, float, float] | None
    std: tuple[float, float, float] | None
    max_pixels: int
    bits: int | None
    exif_orientation: bool
    window: Window | None
    workers: int

    def reading(self, remembered: Remembered) -> ImageReading:
        """The rest as the checkpoint says; ValueError where the options do not fit one another."""
        check_window(self.window)
        return ImageReading(
            remembered.prepare(self.image_size, self.resize, self.mean, self.std),
            self.max_pixels,
            self.bits or remembered.bits,
            self.exif_orientation or remembered.exif_orientation,
            self.window or remembered.window,
            self.workers,
        )


def read_calibration(network: Network, *, folder: Path, reading: ImageReading) -> torch.Tensor:
    """At most `MOST_CALIBRATION` images, evenly from all of a folder; ValueError where they are too few, or one is damaged."""
    found = images.find_images([folder]).images
    if not found:
        raise ValueError(f"no images in {folder}, which --calibration names")
    if len(found) < LEAST_IMAGES:
        raise ValueError(f"calibration must have {LEAST_IMAGES} images or more, got {len(found)} in {folder}")
    places = torch.linspace(0, len(found) - 1, min(len(found), MOST_CALIBRATION)).round().long().tolist()
    prepare = network.prepare(reading.preprocess)
    tensors = []
    for place in places:
        try:
            tensors.append(prepare(reading.read(found[place])))
        except ImageError as error:
            raise ValueError(f"calibration image {found[place]}: {error.reason}") from None
    return torch.stack(tensors)


def _gathered(name: str, into: type[Any], *options: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that gives a command these options, and hands them over as one argument `name`, an `into`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def gather(*args: Any, **given: Any) -> Any:
            own = {field.name: given.pop(field.name) for field in fields(into)}
            return command(*args, **given, **{name: into(**own)})

        for option in reversed(options):
            gather = option(gather)
        return gather

    return decorate


calibration_option = click.option(
    "--calibration", type=PATH,
    help="With --dtype int8: a folder of 32 images or more, of the kind that the network will see.",
)  # fmt: skip
csv_safe_option = click.option(
    "--csv-safe", is_flag=True, help="Put a ' before texts that a spreadsheet might run, which begin with = + - @ or a control "
    "character, and before those that begin with a '. To read one back, take its ' away.",
)  # fmt: skip
network_options = _gathered(
    "choice",
    NetworkChoice,
    click.option("--classes", type=PATH, help="Names: the official class_indices.json, or text: a name or 'INDEX NAME' per "
                 "line.  [default: as the checkpoint says]"),
    click.option("--model", type=click.Choice(hifuse_fast.list_models()), help="[default: what the checkpoint holds]"),
    click.option("--channel-gate", type=click.Choice(["sigmoid", "double_sigmoid"]),
                 help="double_sigmoid for official checkpoints from before 2024-01-16.  [default: as the file says]"),
    click.option("--ema", is_flag=True, help="Take the moving average of the weights, where the checkpoint holds both."),
    click.option("--greyscale", is_flag=True,
                 help="For a network of one channel: convert images, and take the first of --mean and --std."),
    click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ..."),
    click.option("--dtype", type=click.Choice([*DTYPES, "int8"]),
                 help="[default: float32; of a frozen network's file, its own]"),
    calibration_option,
    click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True),
)  # fmt: skip
image_options = _gathered(
    "images_as",
    ImageChoice,
    click.option("--image-size", type=click.IntRange(1),
                 help="Side of the centre crop.  [default: as the checkpoint says, else 224]"),
    click.option("--resize", type=click.IntRange(1),
                 help="Shorter side before the crop.  [default: as the checkpoint says, else 256 / 224 of the size]"),
    click.option("--mean", nargs=3, type=_RGB, help="Of R, G, B in [0, 1].  [default: as it says, else 0.5 0.5 0.5]"),
    click.option("--std", nargs=3, type=_RGB, help="Of R, G, B in [0, 1].  [default: as it says, else 0.5 0.5 0.5]"),
    click.option("--max-pixels", type=click.IntRange(1), default=images.MAX_PIXELS, show_default=True,
                 help="Larger images are not decoded."),
    click.option("--bits", type=click.IntRange(8, 16),
                 help="Bits of the data in 16-bit images: 12 where white is 4095.  [default: as the checkpoint says, else 16]"),
    click.option("--exif-orientation", is_flag=True,
                 help="Turn images as their orientation says.  [default: pixels as stored]"),
    click.option("--window", nargs=2, type=(float, float), metavar="CENTER WIDTH",
                 help="Of greyscale DICOM: what is shown.  [default: as the checkpoint, else the file says]"),
    click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Threads that decode images."),
)  # fmt: skip


def made_by(checkpoint: Path, network: Network, choice: NetworkChoice, reading: ImageReading) -> dict[str, Any]:
    """What results are made by: versions, the checkpoint and its hash, how images are read, and how the network runs."""
    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        **versions(),
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": digest,
        "model": network.described(),
        "bits": reading.bits,
        "exif_orientation": reading.exif_orientation,
        "window": reading.window,
        "preprocess": asdict(reading.preprocess),
        "device": str(choice.on),
        "dtype": network.dtype,
        "backend": choice.backend,
    }


def versions() -> dict[str, str | None]:
    """Those of the packages that results depend on; None for one that is not installed."""
    found: dict[str, str | None] = {"hifuse_fast": hifuse_fast.__version__, "torch": torch.__version__}
    for package in ("numpy", "pillow", "tifffile", "pydicom"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def find_device(name: str) -> torch.device:
    """The device of --device; ValueError where there is none of that name."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    found = re.fullmatch(r"cpu|cuda(?::([0-9]+))?", name)
    if found is None:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if name != "cpu" and int(found[1] or 0) >= torch.cuda.device_count():  # torch takes cuda:256 for cuda:0
        raise ValueError(f"device {name} is not there: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices")
    return torch.device(name)


def quiet_decoders() -> None:
    """Leave what a damaged or large image means to us: limits are the user's, and damage that matters is an error."""
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit, one for the whole process
    warnings.filterwarnings("ignore", module="PIL")
    warnings.filterwarnings("ignore", module="pydicom")
    for decoder in ("PIL", "tifffile", "pydicom"):
        logging.getLogger(decoder).setLevel(logging.CRITICAL)


def check_output(output: Path | None, inputs: Iterable[Path | None]) -> None:
    """ValueError where the results would replace what they are made of."""
    if output is None or not output.exists():
        return
    for path in inputs:
        if path is not None and path.exists() and output.samefile(path):
            raise ValueError(f"output {output} is one of the inputs, {path}: name another file")
