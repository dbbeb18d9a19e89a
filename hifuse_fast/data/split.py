"""A seeded split into training, validation and test: by class, with groups and images of the same pixels kept together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from hifuse_fast.data.draws import ORDER, generator
from hifuse_fast.data.examples import Example


def split_examples(examples: Sequence[Example], val: float, test: float, seed: int) -> list[Example]:
    """The examples, in their order, each with its split.

    Every split takes its share of each class. What has a group or pixels in common stays on one side: of two such sets, the
    larger one is placed first, each where most is missing of the share of its classes.

    Args:
        examples: their own splits are overwritten.
        val, test: shares of the whole; training has the rest. A share of 0 makes no such split.
        seed: of the order among sets of one size, a number of at least 0.

    Raises:
        ValueError: the shares leave nothing to train on, or a class has too few images, or sets of them, for the splits.
    """
    shares = {name: share for name, share in (("train", 1 - val - test), ("val", val), ("test", test)) if share > 0}
    if "train" not in shares or min(val, test) < 0:
        raise ValueError(f"the shares of validation and test must leave some images for training, got {val} and {test}")
    sets = together(examples)
    order = generator(seed, ORDER).permutation(len(sets))
    wanted = {name: {label: share * n for label, n in _labels(examples).items()} for name, share in shares.items()}
    have: dict[str, Counter[str]] = {name: Counter() for name in shares}
    splits: dict[int, str] = {}
    for chosen in sorted((sets[i] for i in order), key=len, reverse=True):
        labels = _labels([examples[i] for i in chosen])

        def missing(name: str, labels: Counter[str] = labels) -> float:
            """The part of the share that is missing, over the images of this set."""
            return sum(n * (1 - have[name][label] / wanted[name][label]) for label, n in labels.items())

        best = max(shares, key=missing)
        have[best] += labels
        splits |= dict.fromkeys(chosen, best)
    for label in sorted(_labels(examples)):
        lacking = [name for name in shares if not have[name][label]]
        if lacking:
            raise ValueError(
                f"class {label!r} has too few images, or groups of images, for a split: {_labels(examples)[label]} images, and "
                f"none for {' and '.join(lacking)}"
            )
    return [replace(example, split=splits[i]) for i, example in enumerate(examples)]


def _labels(examples: Sequence[Example]) -> Counter[str]:
    return Counter(example.label for example in examples)


def together(examples: Sequence[Example]) -> list[list[int]]:
    """The indices of the examples, in sets that share no group and no digest."""
    parents = list(range(len(examples)))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = i = parents[parents[i]]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, example in enumerate(examples):
        for key in (("group", example.group), ("digest", example.digest)):
            if key[1]:
                parents[root(i)] = root(first.setdefault(key, i))
    sets: dict[int, list[int]] = defaultdict(list)
    for i in range(len(examples)):
        sets[root(i)].append(i)
    return list(sets.values())
