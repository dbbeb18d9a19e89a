"""A resized image, of which only a part is wanted, in memory for that part."""

from __future__ import annotations

import math

from PIL import Image

#: Rows or columns are resized together up to so many pixels: 64 MiB, as Pillow keeps RGB.
STRIP = 2**24

#: Pillow's interpolations, and how far their filters reach to each side, in pixels of the coarser image.
REACH = {"nearest": 0.0, "bilinear": 1.0, "bicubic": 2.0, "box": 0.5, "hamming": 1.0, "lanczos": 3.0}

Box = tuple[int, int, int, int]


def resize_and_crop(image: Image.Image, size: tuple[int, int], box: Box, interpolation: str) -> Image.Image:
    """`image.resize(size, interpolation).crop(box)` of an RGB image, bit for bit.

    Pillow resizes rows and then columns, each by itself, with sums of whole numbers between. So the same bits come from rows
    that are resized in strips, if only those that the box needs, and then columns in strips. A column is resized as a whole,
    because the weights of a filter are rounded by its position in the whole.
    """
    (width, height), (left, top, right, bottom) = size, box
    inner = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))  # the rest of the box stays black
    first, last = _rows_needed(image.height, height, inner, REACH[interpolation])
    resample = Image.Resampling[interpolation.upper()]
    rows = _resize_rows(image, (first, last), width, inner, resample)
    columns = _resize_columns(rows, first, image.height, height, inner, resample)
    if inner == box:
        return columns
    result = Image.new("RGB", (right - left, bottom - top))
    result.paste(columns, (inner[0] - left, inner[1] - top))
    return result


def _rows_needed(height: int, resized: int, inner: Box, reach: float) -> tuple[int, int]:
    """The rows of the image that the rows of the box are made of, and one or two more."""
    scale = height / resized
    margin = reach * max(scale, 1.0) + 2.0
    return max(math.floor(inner[1] * scale - margin), 0), min(math.ceil(inner[3] * scale + margin), height)


def _resize_rows(
    image: Image.Image, needed: tuple[int, int], width: int, inner: Box, resample: Image.Resampling
) -> Image.Image:
    first, last = needed
    left, _, right, _ = inner
    result = Image.new("RGB", (right - left, last - first))
    step = max(1, STRIP // max(width, image.width))
    for start in range(first, last, step):
        end = min(start + step, last)
        strip = image.crop((0, start, image.width, end)).resize((width, end - start), resample)
        result.paste(strip.crop((left, 0, right, end - start)), (0, start - first))
    return result


def _resize_columns(
    rows: Image.Image, first: int, height: int, resized: int, inner: Box, resample: Image.Resampling
) -> Image.Image:
    """`rows` are those of the image from `first` on; what the others would be makes no difference to the rows of the box."""
    _, top, _, bottom = inner
    result = Image.new("RGB", (rows.width, bottom - top))
    step = max(1, STRIP // max(height, resized))
    for start in range(0, rows.width, step):
        end = min(start + step, rows.width)
        strip = Image.new("RGB", (end - start, height))
        strip.paste(rows.crop((start, 0, end, rows.height)), (0, first))
        result.paste(strip.resize((end - start, resized), resample).crop((0, top, end - start, bottom)), (start, 0))
    return result
