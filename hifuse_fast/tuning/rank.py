"""Which backend serves the calls of an op best on a GPU: the order of an entry of the tables (see `backends/choices.py`).

The rivals are all backends with kernels of the op that run on a GPU, and the reference. Each is asked for by name, on the same
calls: forward alone and with the backward, for one large batch and for single images, which weigh alike. They run in CUDA
graphs: what the CPU takes to launch, which decides eager calls of few images, is left out.

The reference, which is the definition, judges; of a block that consists of prepared ops, these by the backends of their own
orders, which were measured before. A rival whose results differ from it, which cannot serve one of the calls or
fails, is left out of the order, with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from hifuse_fast.backends import choices, select, tables
from hifuse_fast.tuning.cases import GAIN, Bench, Case, check_results, reason_of

DEVICE = "cuda"  #: what is tuned


@dataclass(frozen=True)
class Ranked:
    """The rivals of a key by their time over that of the first, the best one first; and why others are missing."""

    times: dict[str, float]
    left_out: list[str]

    @property
    def entry(self) -> dict[str, Any]:
        """What the table is to say; nothing where no rival could be measured."""
        if not self.times:
            return {}
        first, *others = self.times
        times = {name: round(self.times[name], 2) for name in others}
        return {tables.ORDER: [first, *others], **({tables.TIMES: times} if times else {})}


def is_choice(section: str) -> bool:
    """Whether a section of the tables is that of an op, and not tile sizes."""
    return section in select.OPS


def rivals(op: str) -> list[str]:
    """The backends that may serve the op on a GPU; the reference comes first, which judges the others."""
    return [choices.REFERENCE, *select.candidates(op, DEVICE)]


def by_rival(case: Case, name: str) -> Case:
    """The case by one of the `rivals`."""
    return replace(case, backend=case.call.rival(name))


def rank(op: str, cases: Sequence[Case], present: Sequence[str], bench: Bench, *, late: Callable[[], bool]) -> Ranked | None:
    """The order of the rivals by the geometric mean of their times; None where time ran out before all were measured.

    `present` is the order that the table has. Its first stays the first unless another one is clearly faster.
    """
    logs: dict[str, list[float]] = {name: [] for name in rivals(op)}
    left_out: dict[str, str] = {}
    for case in cases:
        expected: list[Tensor] | None = None
        for name in [name for name in logs if name not in left_out]:
            if late():
                return None
            asked = by_rival(case, name)
            try:
                found = bench.results(asked)
                expected = found if expected is None else expected
                check_results(asked, found, expected)
                logs[name].append(math.log(bench.seconds(asked)))
            except Exception as error:  # whatever a backend can fail with: it is left out
                bench.check()
                left_out[name] = reason_of(error)
    means = {name: sum(each) / len(each) for name, each in logs.items() if each and name not in left_out}
    order = _order(means, present)
    times = {name: math.exp(means[name] - means[order[0]]) for name in order}
    return Ranked(times, [f"{name}: {reason}" for name, reason in left_out.items()])


def _order(means: Mapping[str, float], present: Sequence[str]) -> list[str]:
    """From the smallest logarithm of a time to the largest; but noise does not replace the present first."""
    order = sorted(means, key=lambda name: means[name])
    first = next((name for name in present if name in means), None)
    if first is not None and means[order[0]] >= means[first] + math.log(GAIN):
        order = [first, *(name for name in order if name != first)]
    return order
