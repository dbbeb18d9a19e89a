"""Intervals against what is known of them, and groups that are drawn as a whole."""

from __future__ import annotations

import numpy as np
import pytest

from hifuse_fast.app.bootstrap import intervals


def test_the_mean_of_many_images_has_the_normal_interval():
    values = np.random.default_rng(1).normal(size=2000)
    [found] = intervals(lambda rows: np.array([values[rows].mean()]), len(values), resamples=2000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert found.defined == 2000


def test_a_group_is_drawn_as_a_whole_and_widens_the_interval():
    values = np.repeat(np.random.default_rng(2).normal(size=50), 20)  # twenty equal images a patient
    groups = [f"patient {index // 20}" for index in range(1000)]
    drawn = []

    def mean(rows: np.ndarray) -> np.ndarray:
        drawn.append(rows)
        return np.array([values[rows].mean()])

    [alone] = intervals(mean, 1000, resamples=300)
    drawn.clear()
    [grouped] = intervals(mean, 1000, groups=groups, resamples=300)
    for rows in drawn:
        counts = np.bincount(rows, minlength=1000).reshape(50, 20)
        assert (counts == counts[:, :1]).all()
        assert counts[:, 0].sum() == 50
    assert 3.5 < (grouped.high - grouped.low) / (alone.high - alone.low) < 5.5  # the root of 20


def test_resamples_that_define_nothing_are_counted_and_left_out():
    truth = np.array([0] * 9 + [1])
    found = intervals(lambda rows: np.array([1.0 if truth[rows].any() else np.nan, np.nan]), 10, resamples=500)
    assert 0.55 < found[0].defined / 500 < 0.75  # 1 - 0.9^10
    assert (found[0].low, found[0].high) == (1.0, 1.0)
    assert found[1].defined == 0
    assert np.isnan(found[1].low)


def test_the_seed_decides():
    values = np.random.default_rng(3).normal(size=50)

    def run(seed: int) -> list:
        return intervals(lambda rows: np.array([values[rows].mean()]), 50, resamples=20, seed=seed)

    assert run(1) == run(1) != run(2)


def test_groups_must_be_as_many_as_images():
    with pytest.raises(ValueError, match="one for each of 3 images, got 2"):
        intervals(lambda rows: np.zeros(1), 3, groups=["a", "b"])
