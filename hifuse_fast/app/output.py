"""What a network says of images, row by row, as CSV or JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

#: How a text begins that a spreadsheet takes for a formula, or for one once it has dropped the control character; and the sign
#: of a text that is none.
_RUN = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")


@dataclass(frozen=True)
class Row:
    """What the network says of one image: the likeliest class, its probability and those of all, or why there is nothing."""

    path: Path
    label: str | None = None
    probability: float | None = None
    probabilities: tuple[float, ...] = ()
    error: str | None = None
    beside: tuple[str, ...] = ()  #: what else is known of the image, for further columns of a CSV
    pages: int = 1  #: images in the file, of which the first was taken; not written
    largest: int | None = None  #: see `hifuse_fast.data.decode.Decoded`; not written


def write_csv(
    file: TextIO,
    rows: Iterable[Row],
    classes: Sequence[str],
    *,
    beside: Sequence[str] = (),
    safe: bool = False,
    bom: bool = False,
) -> None:
    """Rows as they come: path, class, probability, error, and p(NAME) for every class; texts quoted, numbers not.

    Nothing is written before the first row is there.

    Args:
        file: where to.
        rows: what to write.
        classes: the names of the classes.
        beside: the names of further columns, after the path, of which each row has its values.
        safe: whether a text that a spreadsheet could run, one that begins with = + - @ or a control character, gets a ' before
            it; and one that begins with a ' as well, so that who reads the file takes one ' away from each text that has one.
            (OWASP: CSV injection.)
        bom: whether the file begins with a byte order mark, without which Excel takes UTF-8 for another encoding; Python reads
            such a file with encoding="utf-8-sig".
    """
    rows, text = _begun(rows), _harmless if safe else str
    writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)  # minimal quoting would leave a "\r" bare
    if bom:
        file.write("\ufeff")
    writer.writerow(["path", *beside, "class", "probability", "error", *(f"p({name})" for name in classes)])
    for row in rows:
        values = row.probabilities or [""] * len(classes)
        further = [text(value) for value in row.beside]
        writer.writerow([text(str(row.path)), *further, text(row.label or ""), row.probability, text(row.error or ""), *values])


def write_json(
    file: TextIO, rows: Iterable[Row], classes: Sequence[str], header: Mapping[str, Any], *, beside: Sequence[str] = ()
) -> None:
    """One object: the entries of `header`, then "classes", then "images", each with path, class, probability(ies), error.

    `beside` names further entries of an image, after the path, of which each row has its values.

    Images are written as they come, each on a line. Where `rows` raises, the object is ended, so that what was written is JSON;
    nothing is written before the first row is there.
    """
    rows = _begun(rows)
    opening = json.dumps({**header, "classes": list(classes)}, indent=2).removesuffix("\n}")
    try:
        file.write(f'{opening},\n  "images": [')
        separator = ""
        for row in rows:
            image = {
                "path": str(row.path),
                **dict(zip(beside, row.beside, strict=True)),
                "class": row.label,
                "probability": row.probability,
                "probabilities": list(row.probabilities),
                "error": row.error,
            }
            file.write(f"{separator}\n    {json.dumps(image)}")
            separator = ","
    finally:
        file.write("\n  ]\n}\n")


def _begun(rows: Iterable[Row]) -> Iterator[Row]:
    """The same rows, the first of which is there already."""
    rows = iter(rows)
    return chain(list(islice(rows, 1)), rows)


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(_RUN) else text
