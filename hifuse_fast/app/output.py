"""What a network says of images, row by row, as CSV or JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO


@dataclass(frozen=True)
class Row:
    """What the network says of one image: the likeliest class, its probability and those of all, or why there is nothing."""

    path: Path
    label: str | None = None
    probability: float | None = None
    probabilities: tuple[float, ...] = ()
    error: str | None = None
    pages: int = 1  #: images in the file, of which the first was taken; not written
    largest: int | None = None  #: see `hifuse_fast.data.decode.Decoded`; not written


def write_csv(file: TextIO, rows: Iterable[Row], classes: Sequence[str]) -> None:
    """Rows as they come: path, class, probability, error, and p(NAME) for every class; texts quoted, numbers not."""
    writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)  # minimal quoting would leave a "\r" bare
    writer.writerow(["path", "class", "probability", "error", *(f"p({name})" for name in classes)])
    for row in rows:
        values = row.probabilities or [""] * len(classes)
        writer.writerow([row.path, row.label, row.probability, row.error, *values])


def write_json(file: TextIO, rows: Iterable[Row], classes: Sequence[str], header: Mapping[str, Any]) -> None:
    """One object: the entries of `header`, then "classes", then "images", each with path, class, probability(ies), error."""
    images = [
        {
            "path": str(row.path),
            "class": row.label,
            "probability": row.probability,
            "probabilities": list(row.probabilities),
            "error": row.error,
        }
        for row in rows
    ]
    json.dump({**header, "classes": list(classes), "images": images}, file, indent=2)
    file.write("\n")
