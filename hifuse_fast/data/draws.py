"""Which images a step takes. Nothing here has a state: what is drawn depends on the numbers that a draw is named by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ORDER, AUGMENTATION, DROPOUT = range(3)  #: what is drawn, the second of the numbers

Indices = NDArray[np.intp]


class Draw(NamedTuple):
    """An image as it comes in an epoch: of sampling with replacement, for the first time (0), the second, ..."""

    epoch: int
    image: int
    repeat: int = 0


def seed_of(*numbers: int) -> np.random.SeedSequence:
    """The seed that belongs to numbers of at least 0."""
    return np.random.SeedSequence(numbers)


def generator(*numbers: int) -> np.random.Generator:
    """A generator of its own for these numbers."""
    return np.random.Generator(np.random.PCG64(seed_of(*numbers)))


def order_of(seed: int, epoch: int, count: int, weights: Sequence[float] | NDArray[Any] | None = None) -> Indices:
    """The indices of an epoch: a permutation, or `count` draws with replacement where there are weights."""
    drawn = generator(seed, ORDER, epoch + 1)  # 0 is the split's
    if weights is None:
        return drawn.permutation(count)
    probabilities = np.asarray(weights, dtype=np.float64)
    return drawn.choice(count, size=count, p=probabilities / probabilities.sum()).astype(np.intp)


def batches_of(order: Indices, batch_size: int, parts: int) -> list[Indices]:
    """The batches of an epoch, each for one step. A last one with fewer images than `parts` joins the one before it.

    Raises:
        ValueError: a batch, or the whole epoch, has fewer images than parts.
    """
    for name, size in (("batch_size", batch_size), ("number of training images", len(order))):
        if size < parts:
            raise ValueError(f"the {name} must be at least {parts}, the parts over all ranks and accumulation; got {size}")
    starts = list(range(0, len(order), batch_size))
    if len(order) - starts[-1] < parts:
        del starts[-1]
    return np.split(order, starts[1:])


def parts_of(batch: Indices, parts: int) -> list[Indices]:
    """A batch cut into parts, whose sizes differ by one at most."""
    return np.array_split(batch, parts)


def draws_of(epoch: int, order: Indices) -> list[Draw]:
    """The order of an epoch as draws: an image that comes again is augmented anew."""
    seen: dict[int, int] = {}
    draws = []
    for index in order.tolist():
        seen[index] = seen.get(index, -1) + 1
        draws.append(Draw(epoch, index, seen[index]))
    return draws
