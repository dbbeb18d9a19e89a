"""An image file -> 8-bit RGB, by what its format says of the samples, which is more than Pillow's mode tells."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from hifuse_fast.data import dicom, tiff
from hifuse_fast.data.samples import FULL_BITS, ImageError, Samples, Window, check_bits, check_size, check_window, say

#: The Pillow formats that are ever decoded, each with the suffixes by which its files are found in a folder.
FORMATS: dict[str, tuple[str, ...]] = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "WEBP": (".webp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}

#: The most pixels that are decoded unless the caller says otherwise: 512 MiB of RGB, the size at which Pillow itself refuses.
MAX_PIXELS = 2**29 // 3

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OPPOSITE = {6: 8, 8: 6}  # the other turns undo themselves
_STRAIGHT = {"La": "LA", "RGBa": "RGBA"}  # colours that are multiplied by alpha become what they were


@dataclass(frozen=True)
class Decoded:
    """An image, and what else its file said."""

    image: Image.Image  #: 8-bit RGB
    largest: int | None = None  #: of 16-bit samples the largest value, as stored; None where the file says what white is
    pages: int = 1  #: images in the file, of which this is the first


def load_image(
    path: str | os.PathLike[str],
    max_pixels: int = MAX_PIXELS,
    *,
    bits: int = FULL_BITS,
    exif_orientation: bool = False,
    window: Window | None = None,
) -> Image.Image:
    """The image in a file (of several, the first), as 8-bit RGB.

    What `Image.convert("RGB")` gives, as in the official data set. So an alpha channel is dropped and not blended, a palette is
    looked up, and CMYK is converted without colour profiles. Three things differ:

    - 16-bit samples are reduced to their high byte, where `convert` clips all over 255 to white.
    - The tags of a TIFF count: WhiteIsZero is inverted, and 16-bit planes are put together. Samples without a known black and
      white are refused: signed, floating-point, or of more than 16 bits.
    - No orientation is applied, whatever the format. The official code applies none, so a network that was trained with it saw
      the pixels as stored. Pillow by itself turns TIFF images and no others.

    A DICOM file is read by pydicom, see `hifuse_fast.data.dicom.read_samples`.

    Args:
        path: a file in one of `FORMATS` or DICOM, recognised by its content and not by its name; but DICOM without its preamble
            by the suffix .dcm or .dicom.
        max_pixels: the most pixels (width * height) to decode, checked against the header before anything is decoded. Pillow
            has a limit of its own, 2 * `PIL.Image.MAX_IMAGE_PIXELS`, to be raised by who wants larger images than that.
        bits: how many bits the data of 16-bit samples have, from 8 to 16. With 12, white is 4095. A format that says how many
            bits there are, as a PGM or a 12-bit TIFF does, is believed instead.
        exif_orientation: turn the image as its orientation says (in EXIF, XMP or a TIFF tag), whatever the format.
        window: of greyscale DICOM, centre and width of the values that are shown, in place of what the file says.

    Raises:
        ImageError: the file is absent, unreadable, truncated, damaged, too large, or no image of these formats; or its samples
            have no known range; or a value has more than `bits` bits.
        ValueError: `bits` is out of its range, or `window` is none.
    """
    return read_image(path, max_pixels, bits=bits, exif_orientation=exif_orientation, window=window).image


def read_image(
    path: str | os.PathLike[str],
    max_pixels: int = MAX_PIXELS,
    *,
    bits: int = FULL_BITS,
    exif_orientation: bool = False,
    window: Window | None = None,
) -> Decoded:
    """What `load_image` gives, with what else the file said."""
    check_bits(bits)
    check_window(window)
    try:
        with _open(path) as file:
            if dicom.is_dicom(file):
                return _decoded(dicom.read_samples(file, max_pixels, window))
            return _decode(file, max_pixels, bits, exif_orientation, window)
    except ImageError as error:
        raise ImageError(error.reason, path) from None
    except UnidentifiedImageError:
        raise ImageError(f"not an image that can be read ({', '.join(FORMATS)}, DICOM)", path) from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{error}; PIL.Image.MAX_IMAGE_PIXELS sets that limit", path) from None
    except Exception as error:  # a decoder raises whatever a damaged file leads it to
        raise ImageError(f"cannot be decoded: {say(error)}", path) from error


def convert(image: Image.Image, bits: int = FULL_BITS, exif_orientation: bool = False) -> Decoded:
    """A PIL image of any mode -> 8-bit RGB, as `load_image` has it: the one way from Pillow's samples to ours.

    A TIFF image whose pixels Pillow has decoded already is taken as Pillow turned it.

    Raises:
        ImageError: the image has no pixels or no known range, or is a TIFF that Pillow does not read right.
    """
    check_size(*image.size)
    if isinstance(image, TiffImageFile) and not tiff.pillow_is_right(image, bits):
        raise ImageError("Pillow does not read this kind of TIFF right; load_image does, or says why it cannot")
    if not _is_wide(image) and image.mode in ("I", "F"):
        raise ImageError("32-bit greyscale has no known range; convert it to 8 or 16 bits")
    told = _told_bits(image)  # this, and what follows until the pixels are decoded, is not known any more afterwards
    reduced = _is_reduced(image) and told is None
    if reduced and bits != FULL_BITS:
        raise ImageError(f"Pillow keeps 8 bits of this kind of 16-bit image, so its data cannot be taken for {bits} bits")
    turn = _turn(image, exif_orientation)
    _load(image)
    if _is_wide(image):
        inverted = isinstance(image, TiffImageFile) and tiff.is_inverted(image)
        samples = Samples(np.asarray(image).astype(np.uint16), told or bits, inverted, told is not None)
        return _decoded(samples, turn)
    rgb = (image.convert(_STRAIGHT[image.mode]) if image.mode in _STRAIGHT else image).convert("RGB")
    keeps_high_byte = reduced and image.format != "PPM"  # which is rounded
    largest = 256 * int(np.asarray(rgb).max()) + 255 if keeps_high_byte else None
    return Decoded(_turned(rgb, turn), largest)


@contextlib.contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """The file to decode from. Pillow is not given paths: it maps some files then, and turns what is mapped into disorder."""
    if os.path.exists(path) and not os.path.isfile(path):  # and so never waits for a pipe
        raise ImageError("not a regular file")
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise ImageError(f"cannot be opened: {error.strerror}") from None
    with file:
        yield file


def _decode(file: BinaryIO, max_pixels: int, bits: int, exif_orientation: bool, window: Window | None) -> Decoded:
    file.seek(0)
    try:
        image = Image.open(file, formats=list(FORMATS))
    except UnidentifiedImageError:
        if os.fsdecode(file.name).lower().endswith(dicom.SUFFIXES):  # without the preamble that says so
            return _decoded(dicom.read_samples(file, max_pixels, window))
        if not tiff.is_tiff(file):
            raise
        return _decode_tiff(file, max_pixels, bits, exif_orientation)
    with image:
        check_size(*image.size, max_pixels)
        if isinstance(image, TiffImageFile) and not tiff.pillow_is_right(image, bits):
            return _decode_tiff(file, max_pixels, bits, exif_orientation)
        if bits != FULL_BITS and image.format == "PNG" and _is_reduced(image):
            return _decode_deep_png(file, bits, _turn(image, exif_orientation))
        decoded = convert(image, bits, exif_orientation)
        return replace(decoded, pages=_pages(image))


def _decode_tiff(file: BinaryIO, max_pixels: int, bits: int, exif_orientation: bool) -> Decoded:
    page = tiff.read_page(file, bits, max_pixels)
    return _decoded(page.samples, page.orientation if exif_orientation else 1, page.pages)


def _decode_deep_png(file: BinaryIO, bits: int, turn: int) -> Decoded:
    """A PNG of 16-bit colour. Pillow keeps one byte of a sample: the first of "16B", and the second if it is told "16L"."""
    halves = []
    for order in "BL":
        file.seek(0)
        with Image.open(file, formats=["PNG"]) as image:
            *where, rawmode = image.tile[0]  # type: ignore[attr-defined]
            if not str(rawmode).startswith("RGB"):
                raise ImageError(
                    f"Pillow keeps 8 bits of 16-bit greyscale with alpha, so its data cannot be taken for {bits} bits"
                )
            image.tile = [(*where, str(rawmode)[:-1] + order)]  # type: ignore[attr-defined, list-item]
            halves.append(np.asarray(image)[..., :3].astype(np.uint16))
    return _decoded(Samples(halves[0] << 8 | halves[1], bits), turn)


def _decoded(samples: Samples, turn: int = 1, pages: int = 1) -> Decoded:
    return Decoded(_turned(samples.to_rgb(), turn), None if samples.told else samples.largest, pages)


def _is_wide(image: Image.Image) -> bool:
    """Whether it is greyscale of 16 bits. Pillow reads a 16-bit PNG as "I;16" or "I", by its version, and a deep PGM as "I"."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _told_bits(image: Image.Image) -> int | None:
    """How many bits 16-bit samples have, where the file says so."""
    if isinstance(image, TiffImageFile):
        bits = tiff.bits_of(image)
        return bits if bits < FULL_BITS else None
    white = _white_of_ppm(image)
    return FULL_BITS if white is not None and white != 2**FULL_BITS - 1 else None  # Pillow scales it to 16 bits


def _is_reduced(image: Image.Image) -> bool:
    """Whether Pillow keeps 8 bits of colours of more."""
    if image.mode not in ("RGB", "RGBA", "CMYK"):
        return False
    if isinstance(image, TiffImageFile):
        return tiff.bits_of(image) > 8
    if image.format == "PNG":
        return any(str(tile[3]).endswith(";16B") for tile in getattr(image, "tile", ()))
    return (_white_of_ppm(image) or 0) > 255


def _white_of_ppm(image: Image.Image) -> int | None:
    """The largest value that a PPM or PGM may have, as its header says; None where that is not known."""
    if image.format != "PPM" or not getattr(image, "tile", ()):
        return None
    arguments = image.tile[0][3]  # type: ignore[attr-defined]
    if isinstance(arguments, tuple):
        return int(arguments[-1])
    return 65535 if image.mode == "I" else 255


def _turn(image: Image.Image, exif_orientation: bool) -> int:
    """The orientation to apply to the pixels as Pillow gives them, which has turned a TIFF."""
    turned = isinstance(image, TiffImageFile)
    if turned == exif_orientation:
        return 1
    orientation: int = image.getexif().get(_ORIENTATION, 1)
    return _OPPOSITE.get(orientation, orientation) if turned else orientation


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _load(image: Image.Image) -> None:
    if not isinstance(image, TiffImageFile):
        image.load()
        return
    path, image.filename = image.filename, ""  # Pillow maps some files that have a path, and turns the map into disorder
    try:
        image.load()
    finally:
        image.filename = path


def _pages(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # the directory of a further page is damaged; the first one is read
        return 1
