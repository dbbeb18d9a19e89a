"""What a training is asked for: one list of settings, from which the TOML file, the flags and their checks are made."""

from __future__ import annotations

import difflib
import json
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from hifuse_fast.backends.select import BACKENDS
from hifuse_fast.checks import check_choice, check_count, check_flag
from hifuse_fast.data.check import Reading
from hifuse_fast.data.decode import MAX_PIXELS
from hifuse_fast.data.images import Preprocess
from hifuse_fast.data.samples import check_window
from hifuse_fast.files import writing
from hifuse_fast.model import list_models

AUTO = "auto"
PATHS = ("data", "init")  #: settings that are paths


def _setting(default: Any, text: str, **limits: Any) -> Any:
    """A setting: its default, its help, and `least`, `most`, `below` of a number or `choices` of a text."""
    given: dict[str, Any] = {"default_factory": dict} if default == {} else {"default": default}
    return field(**given, metadata={"help": text, **limits})


@dataclass(frozen=True)
class Configuration:
    """The settings of a training; the defaults are the official script's.

    Raises:
        TypeError, ValueError: a value that does not fit, named in the message.
    """

    # Data
    data: str = _setting("", "Folder or CSV file of the images; on the command line the argument DATA.")
    group_by: str = _setting("", "Column of the CSV file, or pattern over the path, that tells what must stay on one side of a "
                             "split, such as the patient.")  # fmt: skip
    val_share: float = _setting(0.2, "Share for validation, where DATA has no splits.", least=0, below=1)
    test_share: float = _setting(0.0, "Share for a test set, where DATA has no splits.", least=0, below=1)
    allow_duplicates: bool = _setting(False, "Only say it where the same pixels are on both sides of a split.")
    max_pixels: int = _setting(MAX_PIXELS, "Larger images are refused.", least=1)
    bits: int = _setting(16, "Bits of the data in 16-bit images: 12 where white is 4095.", least=8, most=16)
    exif_orientation: bool = _setting(False, "Turn images as their orientation says.")
    window: tuple[float, float] = _setting((0.0, 0.0), "Of greyscale DICOM: centre and width of what is shown, from black to "
                                           "white; with a width of 0 as each file says.")  # fmt: skip
    # Images
    image_size: int = _setting(224, "Side of the images that the network is given.", least=1)
    resize: int = _setting(0, "Shorter side before the centre crop of validation; 0: 256 / 224 of the image size.", least=0)
    mean: tuple[float, float, float] = _setting((0.5, 0.5, 0.5), "Of R, G, B in [0, 1].")
    std: tuple[float, float, float] = _setting((0.5, 0.5, 0.5), "Of R, G, B in [0, 1].")
    min_scale: float = _setting(0.08, "Smallest part of the area that a random crop has.", least=1e-6, most=1)
    flip: bool = _setting(True, "Mirror half of the images.")
    rotation: float = _setting(0.0, "Turn images by up to so many degrees.", least=0, most=180)
    colour_jitter: float = _setting(0.0, "Change brightness, contrast and saturation by up to this part.", least=0, most=1)
    # Network
    model: str = _setting(AUTO, "auto is what --init holds, else hifuse_small.", choices=(AUTO, *list_models()))
    network: Mapping[str, Any] = _setting({}, "Option of the network as in HiFuseOptions; may be given several times, as "
                                          "--network drop_path_rate=0.1 --network 'dims=[48, 96, 192, 384]'.")  # fmt: skip
    init: str = _setting("", "Checkpoint to start from; another number of classes gets a new classifier.")
    freeze: bool = _setting(False, "Train the classifier alone.")
    # Recipe
    epochs: int = _setting(100, "How often every image is seen.", least=1)
    batch_size: int = _setting(32, "Images of a step, over all ranks and parts.", least=1)
    accumulate: int = _setting(1, "Parts of a rank's share of a batch that go through the network one by one.", least=1)
    lr: float = _setting(1e-4, "Learning rate at the end of the warm-up.", least=0)
    weight_decay: float = _setting(1e-2, "Of all but biases and one-dimensional parameters.", least=0)
    warmup_epochs: float = _setting(1.0, "Length of the linear warm-up.", least=0)
    warmup_factor: float = _setting(1e-3, "Where the warm-up starts, as a part of the learning rate.", least=0, most=1)
    end_factor: float = _setting(1e-2, "Where the cosine ends, as a part of the learning rate.", least=0, most=1)
    label_smoothing: float = _setting(0.0, "Part of the label that all classes share.", least=0, below=1)
    focal_gamma: float = _setting(0.0, "Focusing of the focal loss; 0 is cross entropy.", least=0)
    class_weights: bool = _setting(False, "Weigh the loss of a class by the inverse of its size.")
    weighted_sampler: bool = _setting(False, "Draw images with replacement, every class as often as the others.")
    clip: float = _setting(0.0, "Largest norm of the gradient; 0 is any.", least=0)
    ema: float = _setting(
        0.0, "Decay of a moving average of the weights, which is what is validated; 0 is none.", least=0, below=1
    )
    amp: str = _setting("off", "Automatic mixed precision.", choices=("off", "bfloat16", "float16"))
    sync_batch_norm: bool = _setting(False, "Statistics of batch norm over all ranks; on GPUs alone.")
    best: str = _setting("accuracy", "By what validation best.safetensors is chosen.",
                         choices=("accuracy", "balanced_accuracy", "auroc"))  # fmt: skip
    seed: int = _setting(0, "Of everything that is drawn.", least=0, most=2**63 - 1)
    # Running
    workers: int = _setting(2, "Processes that read images; 0 reads them in between.", least=0)
    device: str = _setting(AUTO, "auto, cpu, cuda, cuda:1, ...")
    backend: str = _setting(AUTO, "Kernels, as of predict.", choices=BACKENDS)
    save_every: int = _setting(0, "Steps between two writings of the state, besides those of every epoch; 0 is none.", least=0)
    tensorboard: bool = _setting(False, "Write a log for TensorBoard, too.")

    def __post_init__(self) -> None:
        for each in fields(self):
            value = _checked(each.name, getattr(self, each.name), default_of(each), each.metadata)
            object.__setattr__(self, each.name, value)
        if "num_classes" in self.network:
            raise ValueError("network must not have num_classes: the data have the classes")
        if self.class_weights and self.weighted_sampler:
            raise ValueError("class_weights and weighted_sampler both make up for the sizes of classes: take one of them")
        self.preprocess()
        check_window(self.reading().window)

    def preprocess(self) -> Preprocess:
        """How images of validation, and later ones, are prepared."""
        return Preprocess(self.image_size, self.resize or round(self.image_size * 256 / 224), self.mean, self.std)

    def reading(self) -> Reading:
        """How image files are read."""
        return Reading(self.max_pixels, self.bits, self.exif_orientation, self.window if self.window[1] else None)

    def to_dict(self) -> dict[str, Any]:
        """The settings by name, as JSON and TOML have them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration of these settings, and the defaults of the others."""
        known = [each.name for each in fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                raise ValueError(f"unknown setting {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
        return cls(**values)


def default_of(setting: Field[Any]) -> Any:
    """The default of a field of `Configuration`."""
    return {} if setting.default is MISSING else setting.default


#: Settings that a resumed run may change: they have no part in what is learned, but for rounding.
HARMLESS = ("data", "max_pixels", "workers", "device", "backend", "save_every", "tensorboard")


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings in a TOML file; paths in it are relative to its folder.

    Raises:
        OSError, ValueError: it cannot be read, or is no TOML of settings that fit.
    """
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
        Configuration.from_dict(values)
    except OSError as error:
        raise OSError(f"configuration {path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"configuration {path}: {error}") from None
    for name in PATHS:
        if values.get(name):
            values[name] = os.path.abspath(Path(path).parent / values[name])
    return values


def write_toml(path: str | os.PathLike[str], configuration: Configuration) -> None:
    """Write all settings as TOML."""
    values = configuration.to_dict()
    network = values.pop("network")
    lines = [f"{name} = {_toml(value)}" for name, value in values.items()]
    lines += ["", "[network]", *(f"{name} = {_toml(value)}" for name, value in network.items())]
    with writing(path) as file:
        file.write("\n".join(lines) + "\n")


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, of which later ones win; the options of the network one by one."""
    merged: dict[str, Any] = {}
    for layer in layers:
        network = {**merged.get("network", {}), **layer.get("network", {})}
        merged |= {**layer, "network": network}
    return merged


def parse_option(text: str) -> dict[str, Any]:
    """ "drop_rate=0.1" as {"drop_rate": 0.1}; a value is TOML, or else a text.

    Raises:
        ValueError: it has no name or no "=".
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals):
        raise ValueError(f"--network must be NAME=VALUE, got {text!r}")
    try:
        return {name: tomllib.loads(f"value = {value}")["value"]}
    except tomllib.TOMLDecodeError:
        return {name: value}


def differences(old: Configuration, new: Configuration) -> dict[str, str]:
    """The names of the settings that differ, each with its two values as text."""
    pairs = {each.name: (getattr(old, each.name), getattr(new, each.name)) for each in fields(Configuration)}
    return {name: f"{name} was {one!r} and is {other!r}" for name, (one, other) in pairs.items() if one != other}


def _checked(name: str, value: Any, default: Any, limits: Mapping[str, Any]) -> Any:
    """The value, of the type of the default and within the limits."""
    if isinstance(default, bool):
        return check_flag(name, value)
    if isinstance(default, int):
        return check_count(name, value, limits["least"], limits.get("most"))
    if isinstance(default, float):
        return _check_number(name, value, limits)
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple) or len(value) != len(default):
            raise ValueError(f"{name} must be {len(default)} numbers, got {value!r}")
        return tuple(_check_number(f"{name}[{i}]", each, {}) for i, each in enumerate(value))
    if isinstance(default, str):
        return check_choice(name, value, limits["choices"]) if "choices" in limits else _check_text(name, value)
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a table of options, got {value!r}")
    return {key: list(each) if isinstance(each, tuple) else each for key, each in value.items()}


def _check_number(name: str, value: Any, limits: Mapping[str, Any]) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    if "least" in limits and value < limits["least"]:
        raise ValueError(f"{name} must be at least {limits['least']}, got {value!r}")
    if "most" in limits and value > limits["most"]:
        raise ValueError(f"{name} must be at most {limits['most']}, got {value!r}")
    if "below" in limits and value >= limits["below"]:
        raise ValueError(f"{name} must be below {limits['below']}, got {value!r}")
    return float(value)


def _check_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, got {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be UTF-8, got {value!r}") from None
    return value


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value).lower() if isinstance(value, bool) else repr(value)
