"""Metrics, figures and mistakes -> one HTML page that needs no network and no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from PIL import Image

from hifuse_fast.app.evaluate import Answered
from hifuse_fast.app.extras import needs
from hifuse_fast.app.figures import confusion_figure, reliability_figure, roc_figure
from hifuse_fast.app.metrics import BY_CLASS, OVERALL

_UNDEFINED = "–"


@dataclass(frozen=True)
class Mistake:
    """An image that was taken for another class, as the network saw it, and where it saw that class."""

    index: int  #: among the images of `Answered`
    image: Image.Image
    cam: Image.Image | None = None  #: the same under its Grad-CAM


def render(
    title: str,
    metrics: Mapping[str, Any],
    answered: Answered,
    classes: Sequence[str],
    *,
    about: Mapping[str, object],
    remarks: Sequence[str],
    mistakes: Sequence[Mistake],
) -> str:
    """The page.

    Args:
        title: of the page.
        metrics: see `evaluate.measure`.
        answered: what the metrics and figures are of.
        classes: their names.
        about: what was measured, by name.
        remarks: what a reader must know.
        mistakes: to be shown, in order.
    """
    jinja2 = needs("jinja2", "evaluate")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"number": _number, "between": _between}
    template = environment.from_string(resources.files("hifuse_fast.app").joinpath("report.html.jinja").read_text("utf-8"))
    bootstrap, names = metrics["bootstrap"], list(map(_printable, classes))
    page: str = template.render(
        title=title,
        about=list(about.items()),
        remarks=remarks,
        interval=f"{100 * bootstrap['level']:g} % interval" if bootstrap["resamples"] else None,
        overall=[(OVERALL[name], metric) for name, metric in metrics["overall"].items()],
        class_metrics=list(BY_CLASS.values()),
        classes=[
            (name, found["images"], [found[metric] for metric in BY_CLASS]) for name, found in metrics["by_class"].items()
        ],
        figures=[
            ("Confusion matrix, in numbers of images.", confusion_figure(answered.outcomes, names)),
            ("ROC curves.", roc_figure(answered.outcomes, names)),
            ("Reliability: points on the diagonal are honest.", reliability_figure(answered.outcomes)),
        ],
        mistakes=[_shown(mistake, answered) for mistake in mistakes],
        failed=[(row.path, row.error) for _, row in answered.failed],
    )
    return _printable(page)


def _shown(mistake: Mistake, answered: Answered) -> dict[str, object]:
    example, row = answered.examples[mistake.index], answered.rows[mistake.index]
    return {
        "image": _embedded(mistake.image),
        "cam": None if mistake.cam is None else _embedded(mistake.cam),
        "path": example.path,
        "truth": example.label,
        "predicted": row.label,
        "probability": row.probability,
    }


def _embedded(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _printable(text: str) -> str:
    """As text that UTF-8 can hold: names of files, and so of classes, may be any bytes."""
    return text.encode("utf-8", "replace").decode()


def _number(value: float | None) -> str:
    return _UNDEFINED if value is None else f"{value:.3f}"


def _between(metric: Mapping[str, Any]) -> str:
    return _UNDEFINED if metric["low"] is None else f"{metric['low']:.3f} to {metric['high']:.3f}"
