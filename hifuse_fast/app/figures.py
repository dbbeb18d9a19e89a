"""The figures of a report, as SVG texts."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from hifuse_fast.app.extras import needs
from hifuse_fast.app.metrics import Outcomes, confusion_matrix, reliability

_MOST_NAMED = 20  #: classes; of more, neither names nor numbers would be readable
_MUTED = "#7a7a7a"


def confusion_figure(outcomes: Outcomes, classes: Sequence[str]) -> str:
    """The confusion matrix: numbers of images, coloured by the share of the row's class."""
    counts = confusion_matrix(outcomes)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(9.0, 2.2 + 0.45 * len(classes))
    with _figure(side, side) as (plot, text):
        plot.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        plot.set(xlabel="Predicted class", ylabel="True class")
        if len(classes) <= _MOST_NAMED:
            plot.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
            plot.set_yticks(range(len(classes)), classes)
            for (row, column), count in np.ndenumerate(counts):
                colour = "white" if shares[row, column] > 0.5 else "black"
                plot.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=8)
    return text[0]


def roc_figure(outcomes: Outcomes, classes: Sequence[str]) -> str:
    """The ROC curves, of each class against the rest; of two classes that of the second."""
    roc_curve = needs("sklearn.metrics", "evaluate").roc_curve
    shown = [1] if len(classes) == 2 else outcomes.classes
    with _figure(5.2, 5.2) as (plot, text):
        plot.plot([0, 1], [0, 1], color=_MUTED, linewidth=0.8, linestyle="--")
        for index in shown:
            positive = outcomes.truth == index
            if positive.any() and not positive.all():
                false_rate, true_rate, _ = roc_curve(positive, outcomes.probabilities[:, index])
                name = f" {classes[index]}"  # matplotlib leaves names out that begin with a "_"
                plot.plot(false_rate, true_rate, linewidth=1.4, label=name)
        plot.set(xlabel="1 - specificity", ylabel="Sensitivity", xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
        if len(shown) <= _MOST_NAMED and plot.get_legend_handles_labels()[0]:
            plot.legend(fontsize=8, loc="lower right", frameon=False)
    return text[0]


def reliability_figure(outcomes: Outcomes) -> str:
    """How often the network is right where it says how sure it is, and how many images are in each bin."""
    bins = reliability(outcomes)
    width = 1 / len(bins.count)
    left = np.arange(len(bins.count)) * width
    filled = bins.count > 0
    with _figure(5.2, 5.2) as (plot, text):
        plot.bar(left, bins.count / bins.count.sum(), width, align="edge", color="#d9d9d9", label="share of images")
        plot.plot([0, 1], [0, 1], color=_MUTED, linewidth=0.8, linestyle="--")
        plot.plot(bins.confidence[filled], bins.accuracy[filled], marker="o", markersize=4, linewidth=1.4, label="accuracy")
        plot.set(xlabel="Probability of the predicted class", ylabel="Accuracy", xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
        plot.legend(fontsize=8, loc="upper left", frameon=False)
    return text[0]


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Any, list[str]]]:
    """Axes to draw on, and a list that has the SVG when the block ends. Works without a display, and leaves pyplot alone."""
    figures, rc = needs("matplotlib.figure", "evaluate"), needs("matplotlib", "evaluate").rc_context
    text: list[str] = []
    # Names are set as text and not as formulas; ids do not differ from run to run, so that the same data give the same file.
    with rc({"text.parse_math": False, "svg.fonttype": "path", "svg.hashsalt": "hifuse_fast"}):
        figure = figures.Figure(figsize=(width, height), layout="constrained")
        plot = figure.add_subplot()
        plot.spines[["top", "right"]].set_visible(False)
        yield plot, text
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    text.append("<svg" + file.getvalue().split("<svg", 1)[1])
