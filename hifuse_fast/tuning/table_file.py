"""Writes entries of `tables/<architecture>.toml`, line by line, so that comments and all other entries stay as they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hifuse_fast.backends import choices, tables
from hifuse_fast.files import writing

_DEFAULT = {tables.ORDER: list(choices.DEFAULT), tables.ORIGIN: "nothing known"}
_SECTION = re.compile(r"^\[(.+)\]\s*$")


def folder() -> Path:
    """The folder of the tables."""
    return Path(tables.__file__).with_suffix("")


def path(architecture: str) -> Path:
    """The table of an architecture, which need not exist yet."""
    return folder() / f"{architecture}.toml"


def read(table: Path) -> tables.Table:
    """The table, {} where there is none.

    Raises:
        tables.TableError: it is damaged.
    """
    return tables.parse(table.read_text(encoding="utf-8"), table.name) if table.exists() else {}


def put(table: Path, section: str, key: str, entry: Mapping[str, Any], origin: str, *, start: Path | None = None) -> None:
    """Set one entry, whole or not at all. A new table starts as `start`, or as the table that its architecture uses so far."""
    source = table if table.exists() else start or path(tables.nearest(table.stem))
    text = source.read_text(encoding="utf-8").replace(source.stem, table.stem)
    changed = set_entry(text, section, key, entry, origin)
    tables.parse(changed, table.name)  # a damaged table is worse than none
    table.parent.mkdir(parents=True, exist_ok=True)
    with writing(table) as file:
        file.write(changed)


def set_entry(text: str, section: str, key: str, entry: Mapping[str, Any], origin: str) -> str:
    """The text of a table with this entry in it."""
    line = f'"{key}" = {_value({**entry, tables.ORIGIN: origin})}'
    lines = text.rstrip("\n").split("\n")
    begin = next((i for i, each in enumerate(lines) if each.strip() == f"[{section}]"), None)
    if begin is None:
        return "\n".join([*lines, "", f"[{section}]", line, ""])
    end = next((i for i in range(begin + 1, len(lines)) if _SECTION.match(lines[i])), len(lines))
    for i in range(begin + 1, end):
        if lines[i].startswith((f'"{key}" =', f"{key} =")):
            lines[i] = line
            return "\n".join([*lines, ""])
    while not lines[end - 1].strip():  # before the empty lines that end the section
        end -= 1
    return "\n".join([*lines[:end], line, *lines[end:], ""])


def _value(value: Any) -> str:
    """In TOML, on one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_value(each)}" for name, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def described() -> tuple[list[str], list[list[str]]]:
    """A table of all choices, its head and its lines: of the ops, then of the products; keys that agree share a line."""
    all_tables = [tables.table(architecture) for architecture in tables.architectures()]
    body = []
    for mark, title in ((tables.ORDER, "{}"), (choices.PRODUCT, "product of {}")):
        for name in (name for name, section in all_tables[0].items() if any(mark in entry for entry in section.values())):
            body += _lines(
                title.format(name.removesuffix("_forward").removesuffix("_dense")), [each.get(name, {}) for each in all_tables]
            )
    return ["op", "calls", *tables.architectures()], body


def _lines(title: str, sections: list[dict[str, dict[str, Any]]]) -> list[list[str]]:
    keys: dict[tuple[str, ...], list[str]] = {}
    for key in dict.fromkeys(key for section in sections for key in section):
        cells = tuple(_cell(section.get(key) or section.get("*") or _DEFAULT) for section in sections)
        keys.setdefault(cells, []).append("all others" if key == "*" else key)
    if len(keys) == 1:
        return [[title, "all", *cells] for cells in keys]
    ordered = sorted(keys.items(), key=lambda line: "all others" in line[1])  # which come last
    return [[title, "all others" if "all others" in alike else ", ".join(alike), *cells] for cells, alike in ordered]


def _cell(entry: Mapping[str, Any]) -> str:
    """What serves, the times of the others over its own, and how that is known."""
    if tables.ORDER not in entry:
        return f"{'Triton' if entry[choices.PRODUCT] else 'library'} ({entry[tables.ORIGIN]})"
    first, *others = entry[tables.ORDER]
    times = entry.get(tables.TIMES, {})
    told = [f"{name} {times[name]:.2f}x" for name in others if name in times]
    return f"{first} ({', '.join([*told, entry[tables.ORIGIN]])})"
