"""The names of the classes, from a file."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

_NUMBERED = re.compile(r"\s*([0-9]+)[\s:,]\s*(\S.*)")


def load_classes(path: str | os.PathLike[str] | None, num_classes: int) -> list[str]:
    """The names of the classes 0 ... num_classes - 1, from a file, or the indices themselves where there is none.

    Args:
        path: `*.json` in the form of the official training script, {"0": "name", "1": ...}; any other file is text with a name
            per line, or on every line its index and a name ("2 bird", "2: bird", "2,bird"), in any order; both in UTF-8.
        num_classes: how many the network has.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not of that form, has another number of names, or one of them empty or twice; an index is missing,
            twice, or on some lines only. (Names that begin with a number by themselves can be given as JSON.)
    """
    if path is None:
        return [str(index) for index in range(num_classes)]
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            names = _names_of_json(json.loads(text, object_pairs_hook=_without_duplicates))
        else:
            names = _names_of_lines(text.rstrip().split("\n"))
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError and JSONDecodeError; JSON of a thousand brackets
        raise ValueError(f"classes file {path}: {error}") from None
    names = [name.strip() for name in names]
    if len(names) != num_classes:
        raise ValueError(f"classes file {path}: {len(names)} names, but the checkpoint has {num_classes} classes")
    if "" in names or len(set(names)) != len(names):
        raise ValueError(f"classes file {path}: every name must be there, and once; got {names}")
    return names


def _names_of_json(indices: Any) -> list[str]:
    if not isinstance(indices, dict) or set(indices) != {str(index) for index in range(len(indices))}:
        raise ValueError('must map every index to a name: {"0": "name of class 0", "1": ...}')
    names = [indices[str(index)] for index in range(len(indices))]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"every name must be a string, got {names}")
    return names


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of JSON; of a key that is there twice, Python would take the last value."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def _names_of_lines(lines: list[str]) -> list[str]:
    """The names in the order of their indices where the lines have some, else of the lines."""
    numbered = [_NUMBERED.fullmatch(line.rstrip()) for line in lines]
    if not any(numbered):
        return lines
    if not all(numbered):
        bare = lines[[match is None for match in numbered].index(True)].strip()
        first = next(match for match in numbered if match)[0].strip()
        raise ValueError(
            f"either every line or none must begin with an index, but one is {first!r} and one {bare!r}; names that begin with "
            'a number can be given as JSON: {"0": "name of class 0", "1": ...}'
        )
    names = {int(match[1]): match[2] for match in numbered if match}
    if sorted(names) != list(range(len(lines))):
        found = ", ".join(match[1] for match in numbered if match)
        raise ValueError(f"the lines begin with indices, which must be 0 to {len(lines) - 1}, each once; got {found}")
    return [names[index] for index in range(len(lines))]
