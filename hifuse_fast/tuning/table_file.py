"""Writes entries of `tables/<architecture>.toml`, line by line, so that comments and all other entries stay as they are."""

from __future__ import annotations

import os
import re
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hifuse_fast.backends import choices, tables

_SECTION = re.compile(r"^\[(.+)\]\s*$")


def folder() -> Path:
    """The folder of the tables."""
    return Path(tables.__file__).with_suffix("")


def path(architecture: str) -> Path:
    """The table of an architecture, which need not exist yet."""
    return folder() / f"{architecture}.toml"


def read(table: Path) -> dict[str, dict[str, Any]]:
    """kernel -> key -> entry, {} where there is no table."""
    return tomllib.loads(table.read_text(encoding="utf-8")) if table.exists() else {}


def put(table: Path, kernel: str, key: str, config: Mapping[str, float], origin: str, *, start: Path | None = None) -> None:
    """Set one entry, at once or not at all; a new table starts as `start`, or as the one its architecture uses so far."""
    source = table if table.exists() else start or path(tables.nearest(table.stem))
    text = source.read_text(encoding="utf-8").replace(source.stem, table.stem)
    _write(table, set_entry(text, kernel, key, config, origin))


def set_entry(text: str, kernel: str, key: str, config: Mapping[str, float], origin: str) -> str:
    """The text of a table with this entry in it."""
    values = ", ".join(f"{name} = {value}" for name, value in config.items())
    entry = f'"{key}" = {{ {values}, origin = "{origin}" }}'
    lines = text.rstrip("\n").split("\n")
    begin = next((i for i, line in enumerate(lines) if line.strip() == f"[{kernel}]"), None)
    if begin is None:
        return "\n".join([*lines, "", f"[{kernel}]", entry, ""])
    end = next((i for i in range(begin + 1, len(lines)) if _SECTION.match(lines[i])), len(lines))
    for i in range(begin + 1, end):
        if lines[i].startswith((f'"{key}" =', f"{key} =")):
            lines[i] = entry
            return "\n".join([*lines, ""])
    while not lines[end - 1].strip():  # before the empty lines that end the section
        end -= 1
    return "\n".join([*lines[:end], entry, *lines[end:], ""])


def _write(table: Path, text: str) -> None:
    tomllib.loads(text)  # a damaged table is worse than none
    table.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=table.parent, prefix=table.name, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    Path(name).chmod(0o644)
    Path(name).replace(table)


def described() -> tuple[list[str], list[list[str]]]:
    """A table of all choices, its head and its lines: of the ops, then of the products; keys that agree share a line."""
    all_tables = [tables.table(architecture) for architecture in tables.architectures()]
    body = []
    for flag, title in ((choices.CHOICE, "{}"), (choices.PRODUCT, "product of {}")):
        for name in (name for name, section in all_tables[0].items() if flag in section["*"]):
            body += _lines(
                title.format(name.removesuffix("_forward").removesuffix("_dense")), [each[name] for each in all_tables]
            )
    return ["op", "calls", *tables.architectures()], body


def _lines(title: str, sections: list[dict[str, dict[str, object]]]) -> list[list[str]]:
    keys: dict[tuple[str, ...], list[str]] = {}
    for key in dict.fromkeys(key for section in sections for key in section):
        cells = tuple(_cell(section.get(key) or section["*"]) for section in sections)
        keys.setdefault(cells, []).append("all others" if key == "*" else key)
    if len(keys) == 1:
        return [[title, "all", *cells] for cells in keys]
    ordered = sorted(keys.items(), key=lambda line: "all others" in line[1])  # which come last
    return [[title, "all others" if "all others" in alike else ", ".join(alike), *cells] for cells, alike in ordered]


def _cell(entry: dict[str, object]) -> str:
    """What serves, and how that is known."""
    served = "Triton" if entry.get(choices.CHOICE, entry.get(choices.PRODUCT)) else "library"
    ratio = "" if tables.REFERENCE not in entry else f"library / Triton {entry[tables.REFERENCE]}, "
    return f"{served} ({ratio}{entry['origin']})"
