"""Scores of the same readings against one another: areas under the ROC curve, with intervals by patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hifuse_fast.app.bootstrap import intervals
from hifuse_fast.app.extras import needs

RESAMPLES = 2000
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Comparison:
    """The AUROC of each score, and that of the first less that of each other, by the name of the other."""

    auroc: dict[str, Estimate]
    difference: dict[str, Estimate]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    truth: NDArray[np.bool_], scores: Mapping[str, Scores], patients: Sequence[str], *, resamples: int = RESAMPLES
) -> Comparison:
    """Compare the first score with each of the others.

    A resample draws patients, with all of their readings, and every score is measured on the same one: that pairs them. A
    resample in which all readings are of one class defines no AUROC and is left out.

    Args:
        truth: of each reading, whether it is of the class that high scores stand for.
        scores: by name, of each reading; any scale.
        patients: of each reading.
        resamples: how many are drawn.
    """
    names = list(scores)
    table = np.stack([scores[name] for name in names])

    def statistic(rows: NDArray[np.int64]) -> Scores:
        areas = np.array([auroc(truth[rows], values[rows]) for values in table])
        return np.concatenate([areas, areas[0] - areas[1:]])

    values = statistic(np.arange(len(truth)))
    found = intervals(statistic, len(truth), groups=patients, resamples=resamples)
    estimates = [Estimate(float(value), each.low, each.high) for value, each in zip(values, found, strict=True)]
    return Comparison(dict(zip(names, estimates, strict=False)), dict(zip(names[1:], estimates[len(names) :], strict=True)))


def auroc(truth: NDArray[np.bool_], scores: Scores) -> float:
    """The part of the pairs of a positive and a negative that the scores order, equal ones by half; NaN without such a pair."""
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not (positives and negatives):
        return float("nan")
    above = needs("scipy.stats", "evaluate").rankdata(scores)[truth].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))
