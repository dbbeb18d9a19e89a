"""TIFF: what its tags say of the samples, which kinds Pillow reads right, and the others by tifffile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import TiffImageFile

from hifuse_fast.data.samples import FULL_BITS, ImageError, Samples, check_size

_BITS, _PHOTOMETRIC, _ORIENTATION, _PLANES, _SAMPLE_FORMAT = 258, 262, 274, 284, 339
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _COLOUR = 0, 1, 2  # values of _PHOTOMETRIC
_UNSIGNED = 1  # a value of _SAMPLE_FORMAT
_KINDS = {2: "signed", 3: "floating-point", 4: "untyped", 5: "complex", 6: "complex"}  # the others
_MOST_SAMPLES = 6  # as in Pillow: a damaged file may claim any number
_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class Page:
    """The first image of a TIFF file, as stored, with its orientation and how many images there are."""

    samples: Samples
    orientation: int
    pages: int


def is_tiff(file: BinaryIO) -> bool:
    """Whether a file begins as a TIFF does."""
    file.seek(0)
    return file.read(4) in _BEGINNINGS


def bits_of(image: TiffImageFile) -> int:
    """The most bits that a sample has, by the tags."""
    return int(max(image.tag_v2.get(_BITS, (1,))))


def is_inverted(image: TiffImageFile) -> bool:
    """Whether white is 0, by the tags. Pillow inverts 8 bits by itself, and does not invert 16."""
    return int(image.tag_v2.get(_PHOTOMETRIC, _WHITE_IS_ZERO)) == _WHITE_IS_ZERO


def pillow_is_right(image: TiffImageFile, bits: int) -> bool:
    """Whether Pillow decodes this kind of TIFF to what it means, and to as many bits as `bits` needs.

    It takes signed samples for unsigned ones, and planes of 16 bits for planes of 8 bits; of colours it keeps the high byte.
    """
    if set(image.tag_v2.get(_SAMPLE_FORMAT, (_UNSIGNED,))) != {_UNSIGNED}:
        return False
    if bits_of(image) <= 8 or image.mode.startswith("I;16"):
        return True
    return image.mode not in ("I", "F") and bits == FULL_BITS and image.tag_v2.get(_PLANES, 1) == 1


def read_page(file: BinaryIO, bits: int, max_pixels: int) -> Page:
    """The first image of a file, by tifffile. Samples of 16 bits are taken for `bits`.

    tifffile decodes files without compression, with Deflate and with PackBits; for others it needs the package imagecodecs.

    Raises:
        ImageError: black and white are not known, or another thing about the image is not supported.
    """
    import tifffile  # few files need it

    file.seek(0)
    with tifffile.TiffFile(file) as contents:
        page = contents.pages.first
        check_size(page.imagewidth, page.imagelength, max_pixels)
        kind = _KINDS.get(page.sampleformat)
        if kind is not None or page.bitspersample > FULL_BITS:
            raise ImageError(
                f"its {page.bitspersample}-bit {kind or 'integer'} samples have no known black and white; "
                "convert them to unsigned integers of 8 or 16 bits"
            )
        known = page.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _COLOUR) and page.samplesperpixel <= _MOST_SAMPLES
        if not known or page.bitspersample < 8 or page.imagedepth != 1:
            name = getattr(page.photometric, "name", page.photometric)
            raise ImageError(f"TIFF of {page.samplesperpixel} samples of {page.bitspersample} bits, {name}, is not supported")
        try:
            values = page.asarray(maxworkers=1)
        except (KeyError, ValueError) as error:  # tifffile's message ends in what is missing
            if "imagecodecs" in str(error):
                compression = getattr(page.compression, "name", page.compression)
                raise ImageError(f"TIFF of this kind, compressed by {compression}, needs the package imagecodecs") from None
            raise
        values = _arranged(values, page.axes, page.photometric == _COLOUR)
        told = page.bitspersample != FULL_BITS
        samples = Samples(values, page.bitspersample if told else bits, page.photometric == _WHITE_IS_ZERO, told)
        tag = page.tags.get(_ORIENTATION)
        return Page(samples, 1 if tag is None else tag.value, len(contents.pages))


def _arranged(values: NDArray[Any], axes: str, colour: bool) -> NDArray[Any]:
    """[H, W, 3] of colours, [H, W] of grey, without further samples such as alpha."""
    if axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    elif axes not in ("YX", "YXS"):
        raise ImageError(f"TIFF with axes {axes} is not supported")
    if colour:
        if values.ndim != 3 or values.shape[-1] < 3:
            raise ImageError("TIFF with fewer than three colours is not supported")
        return values[..., :3]
    return values if values.ndim == 2 else values[..., 0]
