"""split.py: shares of every class, groups and equal pixels on one side, and the same split for the same seed."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from hifuse_fast.data.examples import Example
from hifuse_fast.data.split import split_examples


def examples(**counts):
    return [Example(Path(f"/{label}/{i}"), label) for label, count in counts.items() for i in range(count)]


def count(split):
    return Counter((e.split, e.label) for e in split)


def test_every_class_has_its_share():
    split = split_examples(examples(a=100, b=50, c=10), 0.2, 0.1, seed=0)
    assert count(split) == {
        ("train", "a"): 70, ("val", "a"): 20, ("test", "a"): 10,
        ("train", "b"): 35, ("val", "b"): 10, ("test", "b"): 5,
        ("train", "c"): 7, ("val", "c"): 2, ("test", "c"): 1,
    }  # fmt: skip


@pytest.mark.parametrize("n", [2, 3, 7, 11, 29])
def test_no_class_is_more_than_one_image_off(n):
    counts = count(split_examples(examples(a=n, b=2 * n + 1), 0.25, 0.0, seed=1))
    for label, total in (("a", n), ("b", 2 * n + 1)):
        assert counts["val", label] >= 1
        assert abs(counts["val", label] - total / 4) <= 1


def test_the_seed_decides_alone():
    assert split_examples(examples(a=30, b=30), 0.3, 0.0, 5) == split_examples(examples(a=30, b=30), 0.3, 0.0, 5)
    assert split_examples(examples(a=30, b=30), 0.3, 0.0, 5) != split_examples(examples(a=30, b=30), 0.3, 0.0, 6)


def test_groups_and_equal_pixels_stay_together():
    draw = np.random.default_rng(0)
    given = [
        Example(Path(f"/{i}"), "ab"[i % 2], f"patient {draw.integers(120)}", digest=f"pixels {0 if i % 50 == 0 else i}")
        for i in range(500)
    ]
    split = split_examples(given, 0.3, 0.2, seed=0)
    assert [e.path for e in split] == [e.path for e in given]
    sides = defaultdict(set)
    for e in split:
        sides[e.group].add(e.split)
        sides[e.digest].add(e.split)
    assert {len(each) for each in sides.values()} == {1}


def test_shares_hold_with_groups_of_different_sizes():
    draw = np.random.default_rng(0)
    given = [
        Example(Path(f"/{patient}/{i}"), "ab"[patient % 3 == 0], f"patient {patient}")
        for patient in range(80)
        for i in range(draw.integers(1, 9))
    ]
    counts, total = count(split_examples(given, 0.2, 0.2, seed=0)), Counter(e.label for e in given)
    for name, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        for label in "ab":
            assert counts[name, label] / total[label] == pytest.approx(share, abs=0.03)


def test_what_cannot_be_split_is_refused():
    with pytest.raises(
        ValueError, match="class 'b' has too few images, or groups of images, for a split: 1 images, and none for"
    ):
        split_examples(examples(a=5, b=1), 0.2, 0.0, 0)
    one_patient = [Example(Path(f"/{i}"), "a", "p") for i in range(9)]
    with pytest.raises(ValueError, match=r"9 images, and none for val"):
        split_examples(one_patient, 0.2, 0.0, 0)
    with pytest.raises(ValueError, match=r"must leave some images for training, got 0\.6 and 0\.4"):
        split_examples(examples(a=5), 0.6, 0.4, 0)
