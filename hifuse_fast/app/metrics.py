"""Truth and probabilities -> metrics. scikit-learn computes what it has; calibration error and specificity are ours."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hifuse_fast.app.extras import needs

ECE_BINS = 15  #: of equal width, as in the paper

#: Metrics of all classes together, in the order in which they are shown, and how they are called there.
OVERALL = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "f1_macro": "F1, macro",
    "auroc_macro": "AUROC, macro",
    "average_precision_macro": "Average precision, macro",
    "mcc": "Matthews correlation",
    "kappa": "Cohen's kappa",
    "brier": "Brier score",
    "log_loss": "Log loss",
    "ece": "Expected calibration error",
}
#: Metrics of one class against the rest.
BY_CLASS = {
    "precision": "Precision",
    "recall": "Recall",
    "f1": "F1",
    "specificity": "Specificity",
    "auroc": "AUROC",
    "average_precision": "Average precision",
}


@dataclass(frozen=True)
class Outcomes:
    """What was true and what the network said.

    Args:
        truth: [N] indices of classes, N at least 1.
        probabilities: [N, C], each row from 0 to 1 with a sum of 1; C at least 2.

    Raises:
        ValueError: an argument of another shape or range.
    """

    truth: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    def __post_init__(self) -> None:
        p = self.probabilities
        if p.ndim != 2 or p.shape[1] < 2 or self.truth.shape != p.shape[:1] or len(p) == 0:
            raise ValueError(
                f"truth and probabilities must be [N] and [N, C], N at least 1 and C at least 2, got {list(self.truth.shape)} "
                f"and {list(p.shape)}"
            )
        if self.truth.min() < 0 or self.truth.max() >= p.shape[1]:
            raise ValueError(f"truth must be from 0 to {p.shape[1] - 1}, got {self.truth.min()} to {self.truth.max()}")
        if not (p.min() >= 0 and np.abs(p.sum(1) - 1).max() < 1e-4):  # also where one is NaN
            raise ValueError("probabilities must be from 0 to 1, with a sum of 1 in each row")

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The likeliest class of each image, the first of equals."""
        best: NDArray[np.int64] = self.probabilities.argmax(1)
        return best

    @property
    def classes(self) -> list[int]:
        return list(range(self.probabilities.shape[1]))

    def take(self, rows: NDArray[Any]) -> Outcomes:
        """Some of the images, in any order and as often as they are named."""
        return Outcomes(self.truth[rows], self.probabilities[rows])

    def scaled(self, temperature: float) -> Outcomes:
        """The same images with p^(1/T), normalised: the softmax of the logits over T."""
        with np.errstate(divide="ignore"):
            logits = np.log(self.probabilities) / temperature
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return Outcomes(self.truth, powers / powers.sum(1, keepdims=True))


def by_class(outcomes: Outcomes) -> dict[str, NDArray[np.float64]]:
    """The metrics of `BY_CLASS`, each [C], of a class against the rest; NaN where the images do not define one.

    Recall is the sensitivity, TP / (TP + FN); specificity is TN / (TN + FP). Precision and F1 of a class that was never
    predicted are 0.
    """
    metrics = needs("sklearn.metrics", "evaluate")
    truth, p = outcomes.truth, outcomes.probabilities
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        truth, outcomes.predicted, labels=outcomes.classes, zero_division=0
    )
    confusion = confusion_matrix(outcomes)
    negatives = len(truth) - support
    false_positives = confusion.sum(0) - confusion.diagonal()
    ranks = np.array([_ranking(truth == c, p[:, c]) for c in outcomes.classes])
    with np.errstate(invalid="ignore"):
        specificity = (negatives - false_positives) / negatives
    absent = support == 0
    return {
        "precision": np.where(absent, np.nan, precision),
        "recall": np.where(absent, np.nan, recall),
        "f1": np.where(absent, np.nan, f1),
        "specificity": specificity,
        "auroc": ranks[:, 0],
        "average_precision": ranks[:, 1],
    }


def overall(outcomes: Outcomes, of_each: Mapping[str, NDArray[np.float64]]) -> dict[str, float]:
    """The metrics of `OVERALL`, each by the definition of scikit-learn's user guide; NaN where the images do not define one.

    `of_each` is what `by_class` gives. Macro averages are over the classes for which that is defined. The Brier score is the
    mean over images of sum_c (p_c - [c is true])^2, of two classes half of that. The log loss counts a probability below the
    smallest normal float64 as that. The calibration error is `calibration_error`.
    """
    metrics = needs("sklearn.metrics", "evaluate")
    truth, p, predicted, classes = outcomes.truth, outcomes.probabilities, outcomes.predicted, outcomes.classes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes without images, which the report names
        seen = np.unique(truth)
        return {
            "accuracy": float(metrics.accuracy_score(truth, predicted)),
            "balanced_accuracy": float(metrics.balanced_accuracy_score(truth, predicted)),
            "f1_macro": _mean_of_defined(of_each["f1"]),
            "auroc_macro": _mean_of_defined(of_each["auroc"]),
            "average_precision_macro": _mean_of_defined(of_each["average_precision"]),
            "mcc": float(metrics.matthews_corrcoef(truth, predicted)),
            "kappa": float(metrics.cohen_kappa_score(truth, predicted, labels=classes)) if len(seen) > 1 else float("nan"),
            "brier": float(((p - np.eye(len(classes))[truth]) ** 2).sum(1).mean() / (2 if len(classes) == 2 else 1)),
            "log_loss": float(-np.log(np.maximum(p[np.arange(len(truth)), truth], np.finfo(np.float64).tiny)).mean()),
            "ece": calibration_error(outcomes),
        }


def confusion_matrix(outcomes: Outcomes) -> NDArray[np.int64]:
    """[C, C]: how many images of the class of the row were taken for the class of the column."""
    matrix: NDArray[np.int64] = needs("sklearn.metrics", "evaluate").confusion_matrix(
        outcomes.truth, outcomes.predicted, labels=outcomes.classes
    )
    return matrix


@dataclass(frozen=True)
class Bins:
    """Images by the probability of their likeliest class: [bins] how many, the mean of it, and the share that is right."""

    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def reliability(outcomes: Outcomes, bins: int = ECE_BINS) -> Bins:
    """The images in bins of equal width, each with its upper edge and without its lower one; NaN in empty bins."""
    top = outcomes.probabilities.max(1)
    right = outcomes.predicted == outcomes.truth
    edges = np.linspace(0, 1, bins + 1)
    index = np.clip(np.searchsorted(edges, top, side="left") - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(index, weights=top, minlength=bins) / count
        accuracy = np.bincount(index, weights=right, minlength=bins) / count
    return Bins(count, confidence, accuracy)


def calibration_error(outcomes: Outcomes, bins: int = ECE_BINS) -> float:
    """Sum over the bins of `reliability` of (images in it / all) |accuracy - mean probability|.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, equation 3.
    """
    found = reliability(outcomes, bins)
    gaps = np.abs(found.accuracy - found.confidence)[found.count > 0]
    return float((gaps * found.count[found.count > 0]).sum() / found.count.sum())


def _ranking(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> tuple[float, float]:
    """Area under the ROC curve and average precision; NaN where all images are of one kind."""
    if positive.all() or not positive.any():
        return float("nan"), float("nan")
    metrics = needs("sklearn.metrics", "evaluate")
    return float(metrics.roc_auc_score(positive, score)), float(metrics.average_precision_score(positive, score))


def _mean_of_defined(values: NDArray[np.float64]) -> float:
    return float("nan") if np.isnan(values).all() else float(np.nanmean(values))
