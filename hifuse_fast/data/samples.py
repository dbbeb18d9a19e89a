"""The samples of an image: how many bits they have, what is black and what is white; and the error of an image without that."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FULL_BITS = 16  #: the most bits that a sample may have

Window = tuple[float, float]  #: the centre of the values that are shown, and how many there are from black to white


class ImageError(ValueError):
    """An image cannot be used; the message names the file, `reason` is the message without it."""

    def __init__(self, reason: str, path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(reason if path is None else f"{os.fspath(path)}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Samples:
    """Unsigned integers, [H, W] or [H, W, 3], of `bits` bits, 8 to 16: black is 0 and white is 2^bits - 1, or inverted."""

    values: NDArray[Any]
    bits: int
    inverted: bool = False
    told: bool = False  #: the file says how many bits there are

    @property
    def largest(self) -> int:
        return int(self.values.max())

    def to_rgb(self) -> Image.Image:
        """The 8 highest of `bits` bits; ImageError where a value has more than `bits`."""
        white = 2**self.bits - 1
        if self.largest > white:
            raise ImageError(f"its largest value is {self.largest}, which is more than {self.bits} bits hold: at most {white}")
        values = white - self.values if self.inverted else self.values
        return Image.fromarray((values >> (self.bits - 8)).astype(np.uint8)).convert("RGB")


def say(error: Exception) -> str:
    """An error's message, after its type where the message alone says little, as that of a KeyError."""
    name, message = type(error).__name__, str(error)
    if message and isinstance(error, (OSError, ValueError, SyntaxError)):
        return message
    return f"{name}: {message}" if message else name


def check_bits(bits: int) -> None:
    """ValueError unless `bits` are 8 to 16."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 8 <= bits <= FULL_BITS:
        raise ValueError(f"bits must be an integer from 8 to {FULL_BITS}, got {bits!r}")


def check_window(window: Window | None) -> None:
    """ValueError unless it is a finite centre and a width of at least 1, or None."""
    if window is not None and not (len(window) == 2 and all(map(math.isfinite, window)) and window[1] >= 1):
        raise ValueError(f"window must be a finite centre and a width of at least 1, got {' '.join(map(str, window))}")


def check_size(width: int, height: int, max_pixels: int | None = None) -> None:
    """ImageError where there is no pixel, or more than `max_pixels`."""
    if max_pixels is not None and width * height > max_pixels:
        raise ImageError(f"{width} x {height} pixels are more than the limit of {max_pixels}")
    if min(width, height) < 1:
        raise ImageError(f"has no pixels: {width} x {height}")
