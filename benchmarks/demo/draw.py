"""A reading as an image: three neighbouring slices at their true size, one in each channel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.demo.measure import middle
from benchmarks.demo.readings import Reading, Slice

FIELD = 24.0  #: mm that an image shows, either way: all of nine nodules in ten, and the middle of the others, which fill it
SIDE = 64  #: pixels of an image, either way, of three eighths of a mm each; those of the scans have 0.46 to 0.98 mm
NODULE = 255  #: the value of what the outlines enclose; all else is 0
RIM = 2.0  #: pixels of the scan, half of them inside: the width of the line that an outline takes away
_FINER = 8  #: pixels that are drawn for one of the image, either way, so that each has the mean value of what it covers


def draw(reading: Reading) -> Image.Image:
    """The slices below the middle, in the middle and above it as R, G and B, `SIDE` x `SIDE`; black where there is none.

    The middle slice is the largest one. The box around all outlines is centred.
    """
    points = np.concatenate([outline.points for each in reading.slices for outline in each.outlines])
    corner = (points.min(0) + points.max(0)) / 2 - FIELD / 2
    return Image.merge("RGB", [_drawn(each, corner, reading.pixel) for each in three_slices(reading)])


def three_slices(reading: Reading) -> tuple[Slice | None, Slice, Slice | None]:
    """The slices below the middle, in the middle and above it; None where there is none."""
    centre = middle(reading)
    at = reading.slices.index(centre)
    return (
        reading.slices[at - 1] if at else None,
        centre,
        reading.slices[at + 1] if at + 1 < len(reading.slices) else None,
    )


def _drawn(shown: Slice | None, corner: NDArray[np.float64], pixel: float) -> Image.Image:
    """One slice: what its outlines enclose, less holes and less the lines of `RIM`."""
    side = SIDE * _FINER
    canvas = Image.new("L", (side, side))
    pen = ImageDraw.Draw(canvas)
    outlines = shown.outlines if shown is not None else ()
    for outline in sorted(outlines, key=lambda each: not each.included):  # holes last
        corners = [tuple(xy) for xy in ((outline.points - corner) * (side / FIELD)).tolist()]
        if len(corners) > 1:
            pen.polygon(corners, fill=NODULE if outline.included else 0)
        pen.line([*corners, corners[0]], fill=0, width=round(RIM * pixel * side / FIELD), joint="curve")
    return canvas.reduce(_FINER)
