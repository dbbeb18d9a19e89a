"""What a checkpoint remembers of its training, so that nobody has to say it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from hifuse_fast import CheckpointError
from hifuse_fast.checkpoints.read import read_record
from hifuse_fast.data.images import Preprocess
from hifuse_fast.data.samples import FULL_BITS, Window, check_bits, check_window


@dataclass(frozen=True)
class Remembered:
    """Names of classes, and how images are read and prepared; the official ways where a checkpoint says nothing."""

    classes: list[str] | None = None
    preprocess: Preprocess = field(default_factory=Preprocess)
    bits: int = FULL_BITS
    exif_orientation: bool = False
    greyscale: bool = False
    window: Window | None = None

    @classmethod
    def of(cls, checkpoint: Path) -> Self:
        """What the record of a checkpoint says.

        Raises:
            FileNotFoundError, CheckpointError: see `read_record`; or the record says what cannot be.
        """
        record = read_record(checkpoint)
        try:
            return cls._of_record(record) if record else cls()
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"checkpoint {checkpoint}: the record in its metadata does not fit: {error}") from None

    @classmethod
    def _of_record(cls, record: Mapping[str, Any]) -> Self:
        images, classes = record["images"], record["classes"]
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ValueError(f"classes must be names, got {classes!r}")
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in images["preprocess"].items()}
        check_bits(images["bits"])
        window = images.get("window")  # which older trainings do not say
        if window is not None:
            center, width = map(float, window)
            check_window(window := (center, width))
        return cls(
            classes, Preprocess(**values), images["bits"], bool(images["exif_orientation"]), bool(images["greyscale"]), window
        )

    @property
    def reading(self) -> dict[str, Any]:
        """Options of `load_image`: how files are read."""
        return {"bits": self.bits, "exif_orientation": self.exif_orientation, "window": self.window}

    def prepare(
        self,
        image_size: int | None = None,
        resize: int | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
    ) -> Preprocess:
        """How images are prepared, where a user says some of it; another `image_size` alone brings its own `resize`."""
        own = self.preprocess
        resize = resize or (own.resize if image_size is None else round(image_size * 256 / 224))
        return Preprocess(image_size or own.image_size, resize, mean or own.mean, std or own.std, own.interpolation)

    def names(self, num_classes: int) -> list[str]:
        """The names of the classes, or their indices where none are known.

        Raises:
            CheckpointError: there are more or fewer names than classes.
        """
        if self.classes is None:
            return [str(index) for index in range(num_classes)]
        if len(self.classes) != num_classes:
            raise CheckpointError(f"the checkpoint names {len(self.classes)} classes, and its network has {num_classes}")
        return self.classes
