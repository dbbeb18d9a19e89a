"""Image files -> RGB images -> normalised tensors, with the arithmetic of torchvision's transforms on PIL images."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

#: The Pillow formats that are ever decoded, each with the suffixes by which its files are found in a folder.
FORMATS: dict[str, tuple[str, ...]] = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "WEBP": (".webp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

#: The most pixels that are decoded unless the caller says otherwise: 512 MiB of RGB, the size at which Pillow itself refuses.
MAX_PIXELS = 2**29 // 3

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


class ImageError(ValueError):
    """An image cannot be used; the message names the file, `reason` is the message without it."""

    def __init__(self, reason: str, path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(reason if path is None else f"{os.fspath(path)}: {reason}")
        self.reason = reason


def list_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The image files that `paths` name: files as given, folders with everything below them.

    A file is taken whatever its suffix; of a folder, the files with one of `SUFFIXES` (any case) whose names do not begin with
    a dot, sorted by path, links to folders not followed. The order of `paths` is kept; a file named twice is listed once.

    Raises:
        TypeError: `paths` is one path and not a sequence of paths.
        FileNotFoundError: a path that does not exist.
        OSError: a folder that cannot be read.
    """
    if isinstance(paths, (str, os.PathLike)):
        raise TypeError(f"paths must be a sequence of files and folders, got the single path {os.fspath(paths)!r}")
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
        for file in _images_below(path) if path.is_dir() else [path]:
            found.setdefault(os.path.abspath(file), file)
    return list(found.values())


def _images_below(folder: Path) -> list[Path]:
    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder, onerror=_raise)
        for name in names
        if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
    )


def _raise(error: OSError) -> NoReturn:
    raise error


def load_image(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image in a file (of several, the first), as 8-bit RGB.

    What `Image.convert("RGB")` gives, as in the official data set, so also: an alpha channel is dropped and not blended; a
    palette is looked up; CMYK is converted without colour profiles; an EXIF orientation is not applied (neither torchvision
    nor the official code applies it, so a network trained with them saw the pixels as stored). One thing differs: of 16-bit
    greyscale the high byte is taken, as Pillow does for 16-bit colour, where `convert` would clip everything over 255 to white.
    32-bit greyscale has no range that white could be read from and is refused.

    Args:
        path: a file in one of `FORMATS`, recognised by its content and not by its name.
        max_pixels: the most pixels (width * height) to decode, checked against the header before anything is decoded. Pillow
            has a limit of its own, 2 * `PIL.Image.MAX_IMAGE_PIXELS`, to be raised by who wants larger images than that.

    Raises:
        ImageError: the file is absent, truncated, damaged, too large, or no image of these formats.
    """
    if not os.path.isfile(path):  # and so never waits for a pipe
        raise ImageError("no such file, or not a regular one", path)
    try:
        with Image.open(path, formats=list(FORMATS)) as image:
            _check_size(image, max_pixels)
            return _to_rgb(image)
    except ImageError as error:
        raise ImageError(error.reason, path) from None
    except UnidentifiedImageError:
        raise ImageError(f"not an image that can be read ({', '.join(FORMATS)})", path) from None
    except Exception as error:  # a decoder raises whatever a damaged file leads it to
        raise ImageError(f"cannot be decoded: {error or type(error).__name__}", path) from error


def _check_size(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise ImageError(f"{image.width} x {image.height} pixels are more than the limit of {max_pixels}")
    if 0 in image.size:
        raise ImageError(f"has no pixels: {image.width} x {image.height}")


def _to_rgb(image: Image.Image) -> Image.Image:
    # Depending on its version Pillow reads 16-bit PNG as "I;16" or as "I", and a PGM of more than 8 bits as "I", scaled to 16.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ImageError("32-bit greyscale has no known range; convert it to 8 or 16 bits")
    return image.convert("RGB")


@dataclass(frozen=True)
class Preprocess:
    """PIL image -> [3, image_size, image_size] float32: resize, centre crop, scale to [0, 1], then (x - mean) / std.

    The result equals, bit for bit, that of torchvision's Resize(resize), CenterCrop(image_size), ToTensor() and
    Normalize(mean, std) on a PIL image. The defaults are those of the official training and test scripts since September 2022.

    Args:
        image_size: side of the crop in pixels. An image smaller than that is centred on black.
        resize: length of the image's shorter side before the crop, in pixels; the longer side is rounded down.
        mean, std: of R, G, B, on the scale [0, 1].
        interpolation: one of `INTERPOLATIONS`; all but "nearest" widen their filter when they shrink (antialias).

    Raises:
        ValueError: an argument out of its range. On a call, ImageError where the resized image would have more than
            `MAX_PIXELS` pixels: an image a few pixels high and extremely wide.

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
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std!r}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")

    def __call__(self, image: Image.Image) -> Tensor:
        size = self._resized(*image.size)
        image = image.convert("RGB").resize(size, Image.Resampling[self.interpolation.upper()])
        box = self._crop_box(*size)
        pixels = torch.from_numpy(np.array(image.crop(box)))
        x = pixels.permute(2, 0, 1).contiguous().float().div_(255)
        return x.sub_(_per_channel(self.mean)).div_(_per_channel(self.std))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        short, long = sorted((width, height))
        new_long = int(self.resize * long / short)
        if self.resize * new_long > MAX_PIXELS:
            raise ImageError(f"{width} x {height} pixels, resized to a shorter side of {self.resize}, are too many")
        return (self.resize, new_long) if width <= height else (new_long, self.resize)

    def _crop_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        left, top = (self._crop_start(length) for length in (width, height))
        return left, top, left + self.image_size, top + self.image_size

    def _crop_start(self, length: int) -> int:
        """Where the crop starts on one axis; before 0 where the image is smaller (Pillow fills with black)."""
        if length < self.image_size:
            return -((self.image_size - length) // 2)
        return round((length - self.image_size) / 2)  # halves go to the even neighbour


def _per_channel(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float32)[:, None, None]
