"""The tables of architectures: keys, and what is said of a table that is damaged or of another version."""

from __future__ import annotations

import pytest
import torch

from hifuse_fast.backends import choices, tables
from tests.support.processes import python


def test_keys_are_built_of_what_is_there() -> None:
    assert tables.key(96, "", "pixels", dtype=torch.bfloat16) == "16-bit 96 pixels"
    assert tables.key(96, dtype=torch.float32) == "32-bit 96"
    assert tables.key(4096) == "4096"


def test_the_architecture_needs_no_triton() -> None:
    """Nor does the choice, where the package is not installed: the reference serves."""
    code = """
import sys
sys.modules["triton"] = None
import torch
from hifuse_fast.backends import choices, select, tables
device = torch.device("meta")
print(tables.architecture(device), choices.best("layer_norm", "*", device, ["reference"]))
with tables.assume("sm_120"):
    print(tables.architecture(device), tables.nearest("sm_120"))
select._HAS_TRITON = False
print(select.choose("layer_norm", "auto", device=device, dtype=torch.float32))
"""
    assert python(code).split() == ["sm_90", "reference", "sm_120", "sm_100", "reference"]


GOOD = '[norm]\n"*" = { order = ["triton"], origin = "predicted" }\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[norm\n", "sm_1.toml is damaged: .*line 1"),
        ("norm = 3\n", "sm_1.toml: norm must be a section of entries, is 3"),
        ('[norm]\n"k" = { a = 1, origin = "predicted" }\n', r"sm_1.toml, section \[norm\]: has no entry '\*'"),
        ('[norm]\n"k" = { order = ["a"], origin = "" }\nl = { a = 1, origin = "" }\n', r"\[norm\]: has no entry '\*'"),
        (GOOD + "k = 1\n", r"sm_1.toml, section \[norm\], key 'k': must be an entry in braces, is 1"),
        (GOOD + "k = { a = 1 }\n", r"section \[norm\], key 'k': must have an origin, has {'a': 1}"),
        (GOOD + 'k = { a = 1, b = "x", origin = "" }\n', "key 'k': must have integers for tile sizes, has {'b': 'x'}"),
        (GOOD + 'k = { order = "triton", origin = "" }\n', "key 'k': its order must be a list of backends, is 'triton'"),
        (GOOD + 'k = { order = [], origin = "" }\n', r"its order must be a list of backends, is \[\]"),
        (GOOD + 'k = { order = ["a"], times = { b = "x" }, origin = "" }\n', "its times must be numbers by what was measured"),
        (GOOD + 'k = { order = ["a"], newer = 1, origin = "" }\n', "key 'k': this version does not know newer"),
    ],
)
def test_a_damaged_or_newer_table_says_where(text: str, message: str) -> None:
    with pytest.raises(tables.TableError, match=message):
        tables.parse(text, "sm_1.toml")
    tables.parse(GOOD, "sm_1.toml")


def test_where_a_table_says_nothing_triton_comes_first_and_cuda_next(monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[norm]\n"16-bit 9" = { order = ["cuda", "reference"], origin = "Some GPU" }\n'  # and none for all others
    monkeypatch.setattr(tables, "table", lambda _: tables.parse(text, "sm_90.toml"))
    tables._find.cache_clear()
    try:
        assert choices.order("norm", "16-bit 9", "sm_90") == ["cuda", "reference"]
        for op, key in (("norm", "16-bit 8"), ("mlp", "16-bit 9")):
            assert choices.order(op, key, "sm_90") == ["triton", "cuda", "reference"]
        with tables.assume("sm_90"):
            found = [
                choices.best("norm", key, torch.device("meta"), ["cuda", "triton"][:count])
                for key in ("16-bit 9", "16-bit 8")
                for count in (0, 1, 2)
            ]
        assert found == ["reference", "cuda", "cuda", "reference", "cuda", "triton"]
    finally:
        tables._find.cache_clear()


def test_a_table_without_the_section_or_the_order_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "table", lambda _: {"layer_norm": {"*": {"triton": 1, "origin": "predicted"}}})
    tables._find.cache_clear()
    try:
        with pytest.raises(tables.TableError, match=r"sm_90.toml: has no section \[mlp\]"):
            tables.lookup("mlp", "16-bit 9", "sm_90")
        expected = r"sm_90.toml, section \[layer_norm\], key '16-bit 9' or '\*': must have an order of backends"
        with pytest.raises(tables.TableError, match=expected):
            choices.order("layer_norm", "16-bit 9", "sm_90")
    finally:
        tables._find.cache_clear()
