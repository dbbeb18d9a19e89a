"""What a ruler tells of a reading: its diameter, and fourteen more hand-made features."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from benchmarks.demo.readings import Outline, Reading, Slice
from hifuse_fast.app.extras import needs

Points = NDArray[np.float64]

FEATURES = (
    "log diameter", "log area", "log volume", "log height", "log slice distance", "slices", "roundness", "least roundness",
    "solidity", "elongation", "deviation of radii", "largest radius", "mean of largest area", "log pixel",
)  # fmt: skip
_SINGLE = 2.0  # mm between slices, where a reading has one alone: a usual distance
_PIXEL = 0.2  # mm or mm^2, so that the outline of a few pixels has a logarithm and a ratio


def diameter(reading: Reading) -> float:
    """The largest distance between two points of an outline, in mm."""
    return max(_diameter(outline.points) for each in reading.slices for outline in each.outlines if outline.included)


def area(shown: Slice) -> float:
    """What the outlines of a slice enclose less its holes, in mm^2."""
    return sum(_area(outline.points) * (1 if outline.included else -1) for outline in shown.outlines)


def middle(reading: Reading) -> Slice:
    """The slice of the largest area, of equals the lowest."""
    return max(reading.slices, key=area)


def spacing(reading: Reading) -> float:
    """The usual distance between slices, in mm."""
    heights = [each.z for each in reading.slices]
    return float(np.median(np.diff(heights))) if len(heights) > 1 else _SINGLE


def features(reading: Reading) -> Points:
    """The values of `FEATURES`, [14]. Shapes are those of the largest outline in the middle slice."""
    areas = np.array([max(area(each), 0.0) for each in reading.slices])
    step = spacing(reading)
    height = reading.slices[-1].z - reading.slices[0].z + step
    shape = _largest(middle(reading)).points
    radii = np.linalg.norm(shape - shape.mean(0), axis=1) + _PIXEL
    sizes = [diameter(reading), areas.max(), areas.sum() * step, height, step]
    return np.array([
        *(math.log(size + _PIXEL) for size in sizes),
        len(areas),
        _roundness(shape),
        min(_roundness(_largest(each).points) for each in reading.slices),
        (_area(shape) + _PIXEL) / (_hull_area(shape) + _PIXEL),
        _elongation(shape),
        radii.std() / radii.mean(),
        radii.max() / radii.mean(),
        areas.mean() / (areas.max() + _PIXEL),
        math.log(reading.pixel),
    ])  # fmt: skip


def _largest(shown: Slice) -> Outline:
    return max(shown.outlines, key=lambda outline: (outline.included, _area(outline.points)))


def _diameter(points: Points) -> float:
    return float(np.linalg.norm(points[:, None] - points[None], axis=-1).max())


def _area(points: Points) -> float:
    """The shoelace formula."""
    x, y = points.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def _roundness(points: Points) -> float:
    """4 pi area / length^2: 1 of a circle or a point, less of any other shape."""
    length = float(np.linalg.norm(points - np.roll(points, 1, axis=0), axis=1).sum())
    return min(4 * math.pi * (_area(points) + _PIXEL) / (length + _PIXEL) ** 2, 1.0)


def _hull_area(points: Points) -> float:
    """The area of the convex hull; 0 of points on a line."""
    spatial = needs("scipy.spatial", "evaluate")
    try:
        return float(spatial.ConvexHull(points).volume)
    except spatial.QhullError:
        return 0.0


def _elongation(points: Points) -> float:
    """The ratio of the axes of the ellipse that has the same covariance, from 0 to 1."""
    low, high = np.linalg.eigvalsh(np.cov(points.T, bias=True)).clip(0)
    return math.sqrt((low + _PIXEL) / (high + _PIXEL))
