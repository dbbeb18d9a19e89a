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
#: Sections that say whether, or for what, a kernel or a way to launch is taken, and what the page calls them.
SWITCHES = {
    "local_block": "local block in one kernel, in CUDA",
    "global_block": "global block in one kernel, in CUDA",
    "fuse_path": "fuse path in one kernel, in CUDA",
    "mlp_sm90": "MLP by the kernel for sm_90a, in CUDA",
    "mixer_sm90": "mixer by the kernel for sm_90a, in CUDA",
    "mixer_winograd": "mixer by Winograd's algorithm, in Triton",
    "products": "sums of products in parts, in CUDA",
    "dependent_launches": "launches that begin early, in CUDA",
}


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
    """A table of all choices, its head and its lines: ops, products, then switches; keys that agree share a line."""
    all_tables = [tables.table(architecture) for architecture in tables.architectures()]
    body = []
    for mark, title in ((tables.ORDER, "{}"), (choices.PRODUCT, "product of {}")):
        for name in (name for name, section in all_tables[0].items() if any(mark in entry for entry in section.values())):
            body += _lines(
                title.format(name.removesuffix("_forward").removesuffix("_dense")), [each.get(name, {}) for each in all_tables]
            )
    for name, title in SWITCHES.items():
        sections = [each.get(name, {}) for each in all_tables]
        body += _lines(title, sections) if any(sections) else []
    return ["op", "calls", *tables.architectures()], body


def _lines(title: str, sections: list[dict[str, dict[str, Any]]]) -> list[list[str]]:
    # An architecture without such a switch has no such kernel.
    default = {} if title in SWITCHES.values() else _DEFAULT
    keys: dict[tuple[str, ...], list[str]] = {}
    for key in dict.fromkeys(key for section in sections for key in section):
        cells = tuple(_cell(section.get(key) or section.get("*") or default) for section in sections)
        keys.setdefault(cells, []).append("all others" if key == "*" else key)
    if len(keys) == 1:
        return [[title, "all", *cells] for cells in keys]
    ordered = sorted(keys.items(), key=lambda line: "all others" in line[1])  # which come last
    return [[title, "all others" if "all others" in alike else ", ".join(alike), *cells] for cells, alike in ordered]


def label(config: Mapping[str, Any]) -> str:
    """A configuration as a name among `times`: its values, as "0" and "1024-262144"."""
    return "-".join(str(value) for value in config.values())


def _said(switch: Mapping[str, Any]) -> str:
    """Where the first value of a switch has it taken: never, always, or what it says."""
    name, value = next(iter(switch.items()))
    if name in ("rows", "pixels"):
        return {0: "never", 1: "always"}.get(value, f"from {value} {name} on")
    return {"on": "on" if value else "off", "share": f"below {value} % of the multiprocessors"}[name]


def _cell(entry: Mapping[str, Any]) -> str:
    """What serves, the times of the others over its own, and how that is known."""
    if not entry:
        return "-"
    if choices.PRODUCT in entry:
        return f"{'Triton' if entry[choices.PRODUCT] else 'library'} ({entry[tables.ORIGIN]})"
    times = entry.get(tables.TIMES, {})
    if tables.ORDER not in entry:
        said = {name: value for name, value in entry.items() if name not in (tables.TIMES, tables.ORIGIN)}
        return f"{_said(said)} ({', '.join([*(f'{name}: {time:.2f}x' for name, time in times.items()), entry[tables.ORIGIN]])})"
    first, *others = entry[tables.ORDER]
    told = [f"{name} {times[name]:.2f}x" for name in others if name in times]
    return f"{first} ({', '.join([*told, entry[tables.ORIGIN]])})"
