"""Labelled images: from a folder or a CSV file, and back to a CSV file."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hifuse_fast.data.listing import SUFFIXES, find_images
from hifuse_fast.files import writing

SPLITS = ("train", "val", "test")
_COLUMNS = ("path", "label", "group", "split")

Note = Callable[[str], object]


@dataclass(frozen=True)
class Example:
    """An image file and its class."""

    path: Path  #: absolute
    label: str
    group: str = ""  #: such as the patient; "" where nothing is known
    split: str = ""  #: one of `SPLITS`, or "" where that is not decided
    digest: str = ""  #: of the pixels, see `hifuse_fast.data.check.digest`


def read_examples(data: Path, group_by: str = "", note: Note = lambda _: None) -> list[Example]:
    """The examples of `data`, in an order that depends on names alone.

    Args:
        data: a folder `{train,val,test}/<class>/*`, or `<class>/*`, in which the splits are not decided; everything below the
            folder of a class is taken, see `find_images`. Or a CSV file with the columns path (relative to its own folder) and
            label, and, where they are known, group and split.
        group_by: the column of a CSV file that has the groups, "group" unless given; or a regular expression, searched in the
            path below `data`, of which the first group, or all that matches, is the group.
        note: told what a user should know.

    Raises:
        FileNotFoundError: there is no `data`, or a file is missing that a CSV file names.
        OSError: it cannot be read.
        ValueError: it has another form; a class has no images; a row is incomplete, or names a file a second time; a path has
            no group.
    """
    data = Path(os.path.abspath(data))
    if data.is_dir():
        examples = list(_of_folder(data, note))
    elif data.exists():
        examples = _of_csv(data, group_by)
    else:
        raise FileNotFoundError(f"data {data}: no such file or folder")
    if not group_by or (data.is_file() and group_by in _header(data)):
        return examples
    return [_grouped(example, data if data.is_dir() else data.parent, group_by) for example in examples]


def write_examples(path: str | os.PathLike[str], examples: Iterable[Example]) -> None:
    """Write a CSV file that `read_examples` reads back: path, label, group, split."""
    with writing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows((example.path, example.label, example.group, example.split) for example in examples)


def classes_of(examples: Iterable[Example]) -> list[str]:
    """The names of the classes that the training examples have, sorted; of all, where the splits are not decided."""
    return sorted({example.label for example in examples if example.split in ("", "train")})


def _of_folder(data: Path, note: Note) -> Iterator[Example]:
    folders = _folders(data)
    names = [folder.name for folder in folders]
    if "train" not in names:
        yield from _of_classes(data, folders, "", note)
        return
    others = [name for name in names if name not in SPLITS]
    if others:
        raise ValueError(f"data {data} has a folder train, so its folders must be {', '.join(SPLITS)}; got {', '.join(others)}")
    for split in SPLITS:
        if split in names:
            yield from _of_classes(data / split, _folders(data / split), split, note)


def _of_classes(parent: Path, folders: list[Path], split: str, note: Note) -> Iterator[Example]:
    loose = [path for path in parent.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
    if loose:
        note(f"{parent}: {len(loose)} images, such as {loose[0].name}, lie in no folder of a class and were not read.")
    if not folders:
        raise ValueError(f"data {parent} must have a folder for each class, got none")
    for folder in folders:
        found = find_images([folder])
        if not found.images:
            raise ValueError(f"class {folder.name!r} has no images in {folder}")
        if others := found.summary_of_others():
            note(f"{folder}: {others}.")
        yield from (Example(path, folder.name, split=split) for path in found.images)


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _header(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        return next(csv.reader(file), [])


def _of_csv(path: Path, group_by: str) -> list[Example]:
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            columns = list(rows.fieldnames or ())
            missing = {"path", "label"} - set(columns)
            if missing:
                raise ValueError(f"has no column {' and no column '.join(sorted(missing))}; its columns are {columns}")
            group = group_by if group_by in columns else "group"
            examples = [_of_row(row, rows.line_num, path.parent, group) for row in rows]
            _check_rows(examples, named_group=group_by in columns)
        except (ValueError, csv.Error) as error:
            raise ValueError(f"data {path}: {error}") from None
    return examples


def _of_row(row: dict[str, str | None], line: int, folder: Path, group: str) -> Example:
    cells = {name: (row.get(name) or "").strip() for name in ("label", "split", group)}
    path = row["path"] or ""
    for name, value in (("path", path), ("label", cells["label"])):
        if not value:
            raise ValueError(f"line {line} has no {name}")
    if cells["split"] not in ("", *SPLITS):
        raise ValueError(f"line {line}: split must be one of {', '.join(SPLITS)}, got {cells['split']!r}")
    whole = Path(os.path.abspath(folder / path))
    if not whole.is_file():
        raise FileNotFoundError(f"data, line {line}: {whole}: no such file")
    return Example(whole, cells["label"], cells[group], cells["split"])


def _check_rows(examples: list[Example], *, named_group: bool) -> None:
    if not examples:
        raise ValueError("has no rows")
    seen: set[Path] = set()
    for example in examples:
        if example.path in seen:
            raise ValueError(f"{example.path} is there twice")
        seen.add(example.path)
    for name, values in (("split", [e.split for e in examples]), ("group", [e.group for e in examples])):
        lacking = values.count("")
        if lacking and (lacking < len(values) or (name == "group" and named_group)):
            first = examples[values.index("")]
            raise ValueError(f"{lacking} rows have no {name}, such as that of {first.path}: either every row or none must")


def _grouped(example: Example, root: Path, pattern: str) -> Example:
    try:
        found = re.search(pattern, os.path.relpath(example.path, root))
    except re.error as error:
        raise ValueError(f"group_by must be a column or a regular expression, got {pattern!r}: {error}") from None
    if found is None or not (group := found[1 if found.re.groups else 0]):
        raise ValueError(f"group_by {pattern!r} finds no group in {os.path.relpath(example.path, root)}")
    return Example(example.path, example.label, group, example.split)
