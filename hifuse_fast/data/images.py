"""Image files -> RGB images -> normalised tensors, with the arithmetic of torchvision's transforms on PIL images."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hifuse_fast.data.decode import FORMATS, MAX_PIXELS, convert, load_image
from hifuse_fast.data.listing import SUFFIXES, Found, find_images, list_images
from hifuse_fast.data.resize import REACH, Box, resize_and_crop
from hifuse_fast.data.samples import ImageError

__all__ = [
    "FORMATS",
    "INTERPOLATIONS",
    "MAX_PIXELS",
    "SUFFIXES",
    "Found",
    "ImageError",
    "Preprocess",
    "find_images",
    "list_images",
    "load_image",
    "normalised",
]

INTERPOLATIONS = tuple(REACH)

#: The most pixels that the longer side of an enlarged image may have: a column of that length takes 150 MiB.
MAX_LENGTH = 2**22


@dataclass(frozen=True)
class Preprocess:
    """PIL image -> [3, image_size, image_size] float32: resize, centre crop, scale to [0, 1], then (x - mean) / std.

    The result equals, bit for bit, that of torchvision's Resize(resize), CenterCrop(image_size), ToTensor() and
    Normalize(mean, std) on a PIL image in 8-bit RGB. Images of other modes are converted as `load_image` does. The defaults are
    those of the official training and test scripts since September 2022.

    Args:
        image_size: side of the crop in pixels. An image smaller than that is centred on black.
        resize: length of the image's shorter side before the crop, in pixels; the longer side is rounded down.
        mean, std: of R, G, B, on the scale [0, 1].
        interpolation: one of `INTERPOLATIONS`; all but "nearest" widen their filter when they shrink (antialias).

    Raises:
        ValueError: an argument out of its range. On a call, ImageError where the image has no known range, as 32-bit
            greyscale, or its longer side would be enlarged to more than `MAX_LENGTH` pixels.

    Source: torchvision.transforms, on PIL images.
    """

    image_size: int = 224
    resize: int = 256
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name in ("image_size", "resize"):
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a positive integer, got {size!r}")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise ValueError(f"{name} must be three finite numbers, for R, G and B, got {values!r}")
            if max(values) > 1 or min(values) < 0:
                raise ValueError(
                    f"{name} must be on the scale [0, 1], got {values!r}; values on the scale [0, 255] must be divided by 255"
                )
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std!r}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")

    def __call__(self, image: Image.Image) -> Tensor:
        image = convert(image).image
        size = self._resized(*image.size)
        image = resize_and_crop(image, size, self._crop_box(*size), self.interpolation)
        return normalised(image, self.mean, self.std)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        short, long = sorted((width, height))
        new_long = int(self.resize * long / short)
        if short < self.resize and new_long > MAX_LENGTH:
            raise ImageError(
                f"{width} x {height} pixels, resized to a shorter side of {self.resize}, would be {new_long} pixels long, "
                f"which is more than {MAX_LENGTH}; crop the image"
            )
        return (self.resize, new_long) if width <= height else (new_long, self.resize)

    def _crop_box(self, width: int, height: int) -> Box:
        left, top = (self._crop_start(length) for length in (width, height))
        return left, top, left + self.image_size, top + self.image_size

    def _crop_start(self, length: int) -> int:
        """Where the crop starts on one axis; before 0 where the image is smaller (it is filled with black)."""
        if length < self.image_size:
            return -((self.image_size - length) // 2)
        return round((length - self.image_size) / 2)  # halves go to the even neighbour


def normalised(image: Image.Image, mean: Iterable[float], std: Iterable[float]) -> Tensor:
    """8-bit RGB -> [3, H, W] float32: (x / 255 - mean) / std, by channel."""
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
    return x.sub_(_per_channel(mean)).div_(_per_channel(std))


def _per_channel(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float32)[:, None, None]
