"""Confidence intervals by the bootstrap, of images or of groups of images such as patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[np.int64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Interval:
    """Bounds of a 95 % interval, and in how many of the resamples the statistic was defined."""

    low: float
    high: float
    defined: int


def intervals(
    statistic: Statistic,
    count: int,
    *,
    groups: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    on_progress: Callable[[int], None] | None = None,
) -> list[Interval]:
    """Percentile intervals of each value that `statistic` gives.

    A resample draws as many groups as there are, with replacement, and takes all images of each group that is drawn, as often
    as it is drawn. Images of one patient are alike: drawn one by one, they would give too narrow an interval.

    Args:
        statistic: [M] indices of images, which may repeat -> [K] values; NaN where they define none.
        count: number of images.
        groups: of each image; None where each image is a group of its own.
        resamples: how many are drawn, at least 1.
        seed: of the draws; the same seed gives the same intervals.
        level: of the interval.
        on_progress: called with the number of resamples done.

    Raises:
        ValueError: as many groups as images are expected.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13; resampling of clusters: Davison and Hinkley
    1997, section 3.8.
    """
    members = _members(groups, count)
    generator = np.random.default_rng(seed)
    values = []
    for done in range(1, resamples + 1):
        drawn = generator.integers(len(members), size=len(members))
        values.append(statistic(np.concatenate([members[index] for index in drawn])))
        if on_progress is not None:
            on_progress(done)
    table = np.array(values)
    return [_interval(column[~np.isnan(column)], level) for column in table.T]


def _members(groups: Sequence[str] | None, count: int) -> list[NDArray[np.int64]]:
    """The images of each group, in the order of the groups' first images."""
    if groups is None:
        return [np.array([index]) for index in range(count)]
    if len(groups) != count:
        raise ValueError(f"groups must name one for each of {count} images, got {len(groups)}")
    found: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        found.setdefault(group, []).append(index)
    return [np.array(indices) for indices in found.values()]


def _interval(values: NDArray[np.float64], level: float) -> Interval:
    if len(values) == 0:
        return Interval(float("nan"), float("nan"), 0)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), len(values))
