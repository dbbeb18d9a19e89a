"""What a network in int8 has proven on the images that it was calibrated on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Part:
    """A linear, a local block, an MLP or a mixer of the network, and what int8 did to it.

    Args:
        name: of the op, as a frozen network's file has it.
        int8: whether it runs in int8.
        work: its multiply-adds, over all those outside the mixers.
        error: of the logits where it alone is in int8: root mean square, in units of the logits' own spread.
        allowed: the largest `error` with which it is taken: what was left by those that move the logits less for their work.
        probability_error: the largest of a probability, where it alone is in int8.
        scales: what its inputs are divided by: `input_scale`, and of an MLP `hidden_scale`.
        kept: of each scale, which share of the largest magnitude it keeps; what is larger is cut.
    """

    name: str
    int8: bool
    work: float
    error: float
    allowed: float
    probability_error: float
    scales: Mapping[str, float]
    kept: Mapping[str, float]

    @property
    def is_mixer(self) -> bool:
        """Whether it is among the mixers, which count as nothing of what has to run in int8."""
        return self.name.endswith(".mixer")


@dataclass(frozen=True)
class Certificate:
    """A network in int8 beside the same network in float32, on the calibration images.

    Args:
        images: how many there were.
        changed: how many of them int8 puts into another class.
        changed_in_bfloat16: how many bfloat16 does.
        most_changed: how many were allowed.
        work: the share of the multiply-adds outside the mixers that is in int8.
        logits_error: root mean square, in units of the logits' own spread.
        largest_logits_error: of any logit.
        probability_error: the largest of a probability.
        parts: what could be quantised, in the order of the network.
    """

    images: int
    changed: int
    changed_in_bfloat16: int
    most_changed: int
    work: float
    logits_error: float
    largest_logits_error: float
    probability_error: float
    parts: tuple[Part, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Certificate:
        """Of `to_dict`; TypeError or ValueError for what is none."""
        parts = tuple(Part(**_checked(Part, each)) for each in values["parts"])
        return cls(**{**_checked(cls, values), "parts": parts})

    def summary(self) -> str:
        """In one line."""
        mixers = [part.int8 for part in self.parts if part.is_mixer]
        return (
            f"INT8 changes the class of {self.changed} of {self.images} calibration images (bfloat16 of "
            f"{self.changed_in_bfloat16}, allowed are {self.most_changed}), "
            f"a probability by {self.probability_error:.4f} at most; "
            f"{sum(part.int8 for part in self.parts)} of {len(self.parts)} parts, with {self.work:.0%} of the multiply-adds "
            f"outside the mixers{f' and {sum(mixers)} of {len(mixers)} mixers' if mixers else ''}, run in it"
        )

    def __str__(self) -> str:
        """The summary, the errors of all, and a line for each part."""
        rows = [
            f"logits: {self.logits_error:.2%} of their spread (root mean square), {self.largest_logits_error:.4f} at most",
            f"{'part':<44} {'runs in':<8} {'work':>6} {'error':>8} {'allowed':>8} {'probability':>12}",
            *(
                f"{part.name:<44} {'int8' if part.int8 else 'float':<8} {part.work:>6.1%} {part.error:>8.3%} "
                f"{part.allowed:>8.3%} {part.probability_error:>12.4f}"
                for part in self.parts
            ),
        ]
        return "\n".join([self.summary(), *rows])


def _checked(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, with exactly the fields of `kind`, and finite numbers among them."""
    names = {field.name for field in fields(kind)}
    if set(values) != names:
        raise ValueError(f"a {kind.__name__.lower()} must have {', '.join(sorted(names))}, got {', '.join(sorted(values))}")
    for name, value in values.items():
        numbers = value.values() if isinstance(value, dict) else (value,)
        if name not in ("name", "parts") and not all(isinstance(x, (int, float)) and math.isfinite(x) for x in numbers):
            raise ValueError(f"{name} of a {kind.__name__.lower()} must be finite numbers, got {value!r}")
    return dict(values)
