"""A network's answers for images whose class is known -> metrics with intervals, as one JSON object."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hifuse_fast.app.bootstrap import Interval, intervals
from hifuse_fast.app.metrics import BY_CLASS, ECE_BINS, OVERALL, Outcomes, by_class, confusion_matrix, overall
from hifuse_fast.app.output import Row
from hifuse_fast.data.examples import Example


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are found; see `bootstrap.intervals`. No resamples, no intervals."""

    resamples: int = 1000
    seed: int = 0
    level: float = 0.95


@dataclass(frozen=True)
class Answered:
    """The images that the network could answer for, in order, and what it said.

    Args:
        examples: the images.
        rows: of each, what was said; without errors.
        outcomes: the same as arrays.
        failed: the other examples, each with its row, which has an error.
    """

    examples: Sequence[Example]
    rows: Sequence[Row]
    outcomes: Outcomes
    failed: Sequence[tuple[Example, Row]] = ()

    @property
    def groups(self) -> list[str] | None:
        """The group of each image; None where the data have no groups. An image without one is a group of its own."""
        if not any(example.group for example in self.examples):
            return None
        return [f"group {each.group}" if each.group else f"image {i}" for i, each in enumerate(self.examples)]

    def scaled(self, temperature: float, classes: Sequence[str]) -> Answered:
        """With every probability as `temperature` makes it; the rows too."""
        outcomes = self.outcomes.scaled(temperature)
        rows = [
            replace(row, label=classes[int(p.argmax())], probability=float(p.max()), probabilities=tuple(map(float, p)))
            for row, p in zip(self.rows, outcomes.probabilities, strict=True)
        ]
        return Answered(self.examples, rows, outcomes, self.failed)


def gather(examples: Sequence[Example], rows: Sequence[Row], classes: Sequence[str]) -> Answered:
    """What `predict` gave for `examples`, in their order.

    Raises:
        ValueError: no image could be used, or an example's class is none of the network's.
    """
    check_labels(examples, classes)
    number = {name: index for index, name in enumerate(classes)}
    pairs = [(example, row) for example, row in zip(examples, rows, strict=True) if row.error is None]
    if not pairs:
        raise ValueError(f"none of {len(examples)} images could be used")
    truth = np.array([number[example.label] for example, _ in pairs])
    probabilities = np.array([row.probabilities for _, row in pairs], np.float64)
    failed = [(example, row) for example, row in zip(examples, rows, strict=True) if row.error is not None]
    return Answered([example for example, _ in pairs], [row for _, row in pairs], Outcomes(truth, probabilities), failed)


def check_labels(examples: Sequence[Example], classes: Sequence[str]) -> None:
    """ValueError where an example's class is none of the network's."""
    unknown = sorted({example.label for example in examples} - set(classes))
    if unknown:
        raise ValueError(f"the network has no class {', '.join(map(repr, unknown))}: its classes are {', '.join(classes)}")


def measure(
    answered: Answered, classes: Sequence[str], bootstrap: Bootstrap, on_progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """The part of `metrics.json` that is about the answers: counts, metrics and their intervals, the confusion matrix.

    A metric is {"value", "low", "high", "resamples"}: null where the images do not define it, and `resamples` how many of the
    bootstrap's defined it.
    """
    outcomes = answered.outcomes
    values = _values(outcomes)
    groups = answered.groups
    found: Sequence[Interval | None] = [None] * len(values)
    if bootstrap.resamples:
        found = intervals(
            lambda rows: _values(outcomes.take(rows)), len(outcomes.truth), groups=groups, resamples=bootstrap.resamples,
            seed=bootstrap.seed, level=bootstrap.level, on_progress=on_progress,
        )  # fmt: skip
    metrics = [_metric(value, interval) for value, interval in zip(values, found, strict=True)]
    counts = Counter(outcomes.truth.tolist())
    per_class = np.array(metrics[len(OVERALL) :]).reshape(len(BY_CLASS), len(classes)).T
    return {
        "images": len(outcomes.truth),
        "failed": len(answered.failed),
        "groups": None if groups is None else len(set(groups)),
        "bootstrap": {
            "resamples": bootstrap.resamples,
            "of": "images" if groups is None else "groups",
            "level": bootstrap.level,
            "seed": bootstrap.seed,
        },
        "ece_bins": ECE_BINS,
        "overall": dict(zip(OVERALL, metrics[: len(OVERALL)], strict=True)),
        "by_class": {
            name: {"images": counts[index], **dict(zip(BY_CLASS, per_class[index], strict=True))}
            for index, name in enumerate(classes)
        },
        "confusion": confusion_matrix(outcomes).tolist(),
    }


def mistakes(answered: Answered, most: int) -> list[int]:
    """The images that the network took for another class, the most confident ones first, at most `most`."""
    outcomes = answered.outcomes
    wrong = np.flatnonzero(outcomes.predicted != outcomes.truth)
    ranked = sorted(wrong.tolist(), key=lambda i: (-outcomes.probabilities[i].max(), i))
    return ranked[:most]


def _values(outcomes: Outcomes) -> NDArray[np.float64]:
    """The metrics of `OVERALL`, then those of `BY_CLASS` for all classes."""
    of_each = by_class(outcomes)
    of_all = overall(outcomes, of_each)
    return np.concatenate([[of_all[name] for name in OVERALL], *(of_each[name] for name in BY_CLASS)])


def _metric(value: float, interval: Interval | None) -> dict[str, float | int | None]:
    metric: dict[str, float | int | None] = {"value": _defined(value)}
    if interval is not None:
        metric |= {"low": _defined(interval.low), "high": _defined(interval.high), "resamples": interval.defined}
    return metric


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
