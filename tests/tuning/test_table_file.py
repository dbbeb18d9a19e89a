"""How entries of the tables are written, and how the pages show them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from hifuse_fast.backends import tables
from hifuse_fast.tuning import table_file

TABLE = """# first

[a]
"*" = { x = 1, origin = "predicted" }
# why
"k" = { x = 2, origin = "predicted" }

[b]
"*" = { x = 3 }
"""


@pytest.mark.parametrize(
    ("kernel", "key", "changed"),
    [
        ("a", "k", TABLE.replace('{ x = 2, origin = "predicted" }', '{ x = 9, origin = "here" }')),
        ("a", "new", TABLE.replace("\n\n[b]", '\n"new" = { x = 9, origin = "here" }\n\n[b]')),
        ("b", "new", TABLE + '"new" = { x = 9, origin = "here" }\n'),
        ("c", "*", TABLE + '\n[c]\n"*" = { x = 9, origin = "here" }\n'),
    ],
)
def test_an_entry_changes_its_line_alone(kernel: str, key: str, changed: str) -> None:
    assert table_file.set_entry(TABLE, kernel, key, {"x": 9}, "here") == changed
    tomllib.loads(changed)


def test_an_order_is_written_as_it_is_read(tmp_path: Path) -> None:
    entry = {"order": ["cuda", "triton", "reference"], "times": {"triton": 1.25, "reference": 8.02}}
    written = tmp_path / "sm_90.toml"
    table_file.put(written, "linear", "16-bit 96 96 pixels", entry, "Some GPU")
    assert table_file.read(written)["linear"]["16-bit 96 96 pixels"] == {**entry, "origin": "Some GPU"}
    expected = (
        '"16-bit 96 96 pixels" = { order = ["cuda", "triton", "reference"], times = { triton = 1.25, reference = 8.02 }, '
        'origin = "Some GPU" }'
    )
    assert expected in written.read_text().splitlines()


def test_a_damaged_table_is_not_read_and_not_replaced(tmp_path: Path) -> None:
    damaged = tmp_path / "sm_90.toml"
    damaged.write_text("[linear]\n'*' = { order = 3 }\n")
    with pytest.raises(tables.TableError, match=r"sm_90.toml, section \[linear\], key '\*'"):
        table_file.read(damaged)
    with pytest.raises(tables.TableError, match=r"sm_90.toml, section \[linear\], key '\*'"):
        table_file.put(damaged, "linear", "k", {"order": ["triton"]}, "Some GPU")
    assert damaged.read_text() == "[linear]\n'*' = { order = 3 }\n"
    assert list(tmp_path.iterdir()) == [damaged]


def table(**sections: dict[str, Any]) -> dict[str, Any]:
    return {"norm_forward": {"*": {"elements": 1, "origin": "predicted"}}, **sections}


def test_the_page_of_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    origin, unknown = "Some GPU, 2026-01-02", "triton (nothing known)"
    predicted = {"*": {"order": ["triton", "reference"], "origin": "predicted"}}
    product = {
        "*": {"fused": 0, "origin": "predicted"},
        "8x8": {"fused": 1, "origin": "predicted"},
        "9x9": {"fused": 1, "origin": "predicted"},
    }
    two = {"order": ["reference", "triton"], "times": {"triton": 2.0}, "origin": origin}
    three = {"order": ["cuda", "triton", "reference"], "times": {"triton": 1.25, "reference": 8.02}, "origin": origin}
    known = {
        "sm_1": table(norm=predicted, pool=predicted, a_forward=product),
        "sm_2": table(norm={**predicted, "16-bit 96": two, "16-bit 192": three}, pool=predicted, a_forward=product),
        "sm_3": table(norm={"16-bit 96": two}, a_forward=product),
    }
    monkeypatch.setattr(tables, "architectures", lambda: list(known))
    monkeypatch.setattr(tables, "table", known.__getitem__)
    assert table_file.described() == (
        ["op", "calls", "sm_1", "sm_2", "sm_3"],
        [
            ["norm", "16-bit 96", "triton (predicted)", *2 * [f"reference (triton 2.00x, {origin})"]],
            ["norm", "16-bit 192", "triton (predicted)", f"cuda (triton 1.25x, reference 8.02x, {origin})", unknown],
            ["norm", "all others", "triton (predicted)", "triton (predicted)", unknown],
            ["pool", "all", "triton (predicted)", "triton (predicted)", unknown],
            ["product of a", "8x8, 9x9", *3 * ["Triton (predicted)"]],
            ["product of a", "all others", *3 * ["library (predicted)"]],
        ],
    )
