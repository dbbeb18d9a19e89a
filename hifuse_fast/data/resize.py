"""A part of a resized image, in memory for that part where the image is enlarged."""

from __future__ import annotations

import math

from PIL import Image

#: Lines of an image are resized together up to so many pixels: 64 MiB, as Pillow keeps RGB.
STRIP = 2**24

#: Pillow's interpolations, and how far their filters reach to each side, in pixels of an image that is enlarged.
REACH = {"nearest": 0.0, "bilinear": 1.0, "bicubic": 2.0, "box": 0.5, "hamming": 1.0, "lanczos": 3.0}

Box = tuple[int, int, int, int]


def resize_and_crop(image: Image.Image, size: tuple[int, int], box: Box, interpolation: str) -> Image.Image:
    """`image.resize(size, interpolation).crop(box)` of an RGB image, bit for bit.

    An image that is not enlarged on both axes is resized as a whole, for the result is hardly larger than the image. Pillow
    enlarges an image row by row, rounds to 8 bits, and then column by column with the same arithmetic. So the same bits come
    from the rows that the box needs, and of these from the columns in the box. Each line is resized in its full length, because
    the weights of the filter are rounded by their place in it.
    """
    (width, height), (left, top, right, bottom) = size, box
    resample = Image.Resampling[interpolation.upper()]
    if width <= image.width or height <= image.height:
        return image.resize(size, resample).crop(box)
    inner = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))  # the rest of the box stays black
    first, last = _rows_needed(image.height, height, inner, REACH[interpolation])
    rows = _resize_rows(image.crop((0, first, image.width, last)), width, (inner[0], inner[2]), resample)
    columns = Image.new("RGB", (image.height, rows.width))  # as rows; those of the image that are not needed stay black
    columns.paste(rows.transpose(Image.Transpose.TRANSPOSE), (first, 0))
    resized = _resize_rows(columns, height, (inner[1], inner[3]), resample).transpose(Image.Transpose.TRANSPOSE)
    result = Image.new("RGB", (right - left, bottom - top))
    result.paste(resized, (inner[0] - left, inner[1] - top))
    return result


def _rows_needed(height: int, resized: int, inner: Box, reach: float) -> tuple[int, int]:
    """The first row of the image that the rows of the box are made of, and the one after the last; two more, for roundings."""
    scale, margin = height / resized, reach + 2.0
    return max(math.floor(inner[1] * scale - margin), 0), min(math.ceil(inner[3] * scale + margin), height)


def _resize_rows(image: Image.Image, width: int, span: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Columns `span` of the image when its rows are resized to `width`, in strips of rows."""
    start, end = span
    result = Image.new("RGB", (end - start, image.height))
    step = max(1, STRIP // width)
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        strip = image.crop((0, top, image.width, bottom)).resize((width, bottom - top), resample)
        result.paste(strip.crop((start, 0, end, bottom - top)), (0, top))
    return result
