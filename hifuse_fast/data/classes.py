"""The names of the classes, from a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def load_classes(path: str | os.PathLike[str] | None, num_classes: int) -> list[str]:
    """The names of the classes 0 ... num_classes - 1, from a file, or the indices themselves where there is none.

    Args:
        path: `*.json` in the form of the official training script, {"0": "name", "1": ...}; any other file is text with a name
            per line; both in UTF-8.
        num_classes: how many the network has.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not of that form, has another number of names, or one of them empty or twice.
    """
    if path is None:
        return [str(index) for index in range(num_classes)]
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _names_of_json(json.loads(text)) if path.suffix.lower() == ".json" else text.rstrip().split("\n")
    except ValueError as error:  # also UnicodeDecodeError and JSONDecodeError
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
