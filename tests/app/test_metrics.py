"""Metrics against values that were worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hifuse_fast.app.metrics import Outcomes, by_class, calibration_error, confusion_matrix, overall, reliability

pytest.importorskip("sklearn")

# Eight images of three classes. Predicted: 0 0 1 | 1 1 | 2 0 2.
TRUTH = np.array([0, 0, 0, 1, 1, 2, 2, 2])
PROBABILITIES = np.array([
    [0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.3, 0.4, 0.3],
    [0.1, 0.7, 0.2], [0.2, 0.5, 0.3],
    [0.1, 0.0, 0.9], [0.5, 0.1, 0.4], [0.2, 0.3, 0.5],
])  # fmt: skip


def outcomes() -> Outcomes:
    return Outcomes(TRUTH, PROBABILITIES)


def all_of(found: Outcomes) -> dict[str, float]:
    return overall(found, by_class(found))


def test_confusion_and_metrics_of_a_class():
    assert confusion_matrix(outcomes()).tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 2]]
    found = by_class(outcomes())
    assert found["precision"] == pytest.approx([2 / 3, 2 / 3, 1])
    assert found["recall"] == pytest.approx([2 / 3, 1, 2 / 3])
    assert found["f1"] == pytest.approx([2 / 3, 4 / 5, 4 / 5])
    assert found["specificity"] == pytest.approx([4 / 5, 5 / 6, 1])
    # Class 0: positives .8 .6 .3 against .1 .2 .1 .5 .2: of 15 pairs one is in the wrong order, .3 below .5.
    # Class 1: .7 .5 above all of the others. Class 2: .9 .4 .5 against .1 .2 .3 .2 .3: all in order.
    assert found["auroc"] == pytest.approx([14 / 15, 1, 1])
    # Class 0, from the top: .8 right, .6 right, .5 wrong, .3 right: precisions 1, 1, 3/4 at the three.
    assert found["average_precision"] == pytest.approx([(1 + 1 + 3 / 4) / 3, 1, 1])


def test_metrics_of_all_classes():
    found = all_of(outcomes())
    assert found["accuracy"] == pytest.approx(6 / 8)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)
    assert found["f1_macro"] == pytest.approx((2 / 3 + 4 / 5 + 4 / 5) / 3)
    assert found["auroc_macro"] == pytest.approx((14 / 15 + 2) / 3)
    # Kappa: agreement by chance (3*3 + 2*3 + 3*2) / 64.
    assert found["kappa"] == pytest.approx((6 / 8 - 21 / 64) / (1 - 21 / 64))
    # Matthews: (c s - sum p t) / sqrt((s^2 - sum p^2)(s^2 - sum t^2)), c = 6, s = 8, p = (3, 3, 2), t = (3, 2, 3).
    assert found["mcc"] == pytest.approx((6 * 8 - 21) / math.sqrt((64 - 22) * (64 - 22)))
    squares = [0.04 + 0.02, 0.16 + 0.08, 0.49 + 0.16 + 0.09, 0.09 + 0.05, 0.25 + 0.04 + 0.09, 0.01 + 0.01, 0.36 + 0.25 + 0.01,
               0.25 + 0.04 + 0.09]  # fmt: skip
    assert found["brier"] == pytest.approx(sum(squares) / 8)
    likelihoods = [0.8, 0.6, 0.3, 0.7, 0.5, 0.9, 0.4, 0.5]
    assert found["log_loss"] == pytest.approx(-sum(map(math.log, likelihoods)) / 8)


def test_brier_score_of_two_classes_is_that_of_one_probability():
    found = all_of(Outcomes(np.array([0, 1]), np.array([[0.9, 0.1], [0.6, 0.4]])))
    assert found["brier"] == pytest.approx((0.1**2 + 0.6**2) / 2)


def test_calibration_error_over_two_bins():
    # Bins (0, .5] and (.5, 1]: confidences .4 .5 .5 .5 (right: 0 1 0 1), and .8 .6 .7 .9 (all right).
    found = reliability(outcomes(), 2)
    assert found.count.tolist() == [4, 4]
    assert found.confidence == pytest.approx([1.9 / 4, 3.0 / 4])
    assert found.accuracy == pytest.approx([0.5, 1])
    assert calibration_error(outcomes(), 2) == pytest.approx(0.5 * abs(0.5 - 1.9 / 4) + 0.5 * 0.25)


def test_bins_have_their_upper_edge():
    found = reliability(Outcomes(np.array([0]), np.array([[1.0, 0.0]])), 15)
    assert found.count.tolist() == [0] * 14 + [1]


def test_what_the_images_do_not_define_is_nan():
    only = Outcomes(np.array([0, 0]), np.array([[0.9, 0.1], [0.4, 0.6]]))
    found = all_of(only)
    assert [name for name in found if math.isnan(found[name])] == ["auroc_macro", "average_precision_macro", "kappa"]
    assert found["balanced_accuracy"] == 0.5
    classes = by_class(only)
    assert np.isnan(classes["specificity"]).tolist() == [True, False]
    assert np.isnan(classes["recall"]).tolist() == [False, True]


def test_scaling_keeps_the_order_and_moves_the_confidence():
    hot = outcomes().scaled(2.0)
    assert (hot.predicted == outcomes().predicted).all()
    assert (hot.probabilities.max(1) < PROBABILITIES.max(1)).all()
    # p^(1/2), normalised.
    assert hot.probabilities[5] == pytest.approx(np.sqrt([0.1, 0, 0.9]) / np.sqrt([0.1, 0, 0.9]).sum())


@pytest.mark.parametrize(
    ("truth", "probabilities", "message"),
    [
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], "truth must be from 0 to 1"),
        ([0], [[0.5, 0.5], [0.5, 0.5]], r"got \[1\] and \[2, 2\]"),
        ([], np.zeros((0, 2)), "N at least 1"),
        ([0], [[1.0]], "C at least 2"),
        ([0], [[0.5, 0.6]], "sum of 1"),
        ([0], [[1.5, -0.5]], "from 0 to 1"),
        ([0], [[math.nan, 0.5]], "sum of 1"),
    ],
)
def test_bad_outcomes(truth, probabilities, message):
    with pytest.raises(ValueError, match=message):
        Outcomes(np.array(truth, np.int64), np.array(probabilities, np.float64))
