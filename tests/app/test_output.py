"""Rows as CSV and JSON: what is written is read back, whatever the names and however the rows end."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hifuse_fast.app.output import Row, write_csv, write_json
from hifuse_fast.files import writing

CLASSES = ['comma, and "quote"', "line\nbreak"]
ROWS = [
    Row(Path("a,b\r.png"), CLASSES[1], 0.75, (0.25, 0.75)),
    Row(Path("c\n.png"), error="broken"),
]


def test_csv_survives_any_name(tmp_path):
    with writing(tmp_path / "out.csv") as file:
        write_csv(file, ROWS, CLASSES)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["path", "class", "probability", "error", f"p({CLASSES[0]})", f"p({CLASSES[1]})"],
        ["a,b\r.png", CLASSES[1], "0.75", "", "0.25", "0.75"],
        ["c\n.png", "", "", "broken", "", ""],
    ]


def test_float32_probabilities_survive_the_file(tmp_path):
    values = tuple(torch.rand(50, generator=torch.Generator().manual_seed(0)).tolist())
    with writing(tmp_path / "out.csv") as file:
        write_csv(file, [Row(Path("x"), "0", max(values), values)], [str(i) for i in range(50)])
    with (tmp_path / "out.csv").open(newline="") as file:
        written = list(csv.reader(file))[1][4:]
    assert tuple(np.float32(value) for value in written) == tuple(np.float32(value) for value in values)


def test_json(tmp_path):
    with writing(tmp_path / "out.json") as file:
        write_json(file, ROWS, CLASSES, {"version": "1"})
    written = json.loads((tmp_path / "out.json").read_text())
    assert list(written) == ["version", "classes", "images"]
    assert written["classes"] == CLASSES
    good = {"path": "a,b\r.png", "class": CLASSES[1], "probability": 0.75, "probabilities": [0.25, 0.75], "error": None}
    bad = {"path": "c\n.png", "class": None, "probability": None, "probabilities": [], "error": "broken"}
    assert written["images"] == [good, bad]


def test_names_that_are_not_utf8_keep_their_bytes(tmp_path):
    with writing(tmp_path / "out.csv") as file:
        write_csv(file, [Row(Path("\udcff.png"), error="e")], ["0"])
    assert b'"\xff.png"' in (tmp_path / "out.csv").read_bytes()


@pytest.mark.parametrize("reason", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, reason):
    out = tmp_path / "out.csv"
    out.write_text("old")

    def write_and_fail():
        with writing(out) as file:
            file.write("new")
            file.flush()
            assert out.read_text() == "old"
            raise reason

    with pytest.raises(reason):
        write_and_fail()
    assert out.read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for path, error, message in (
        (tmp_path / "absent" / "out.csv", OSError, r"out\.csv cannot be written: No such file"),
        (tmp_path / "file" / "out.csv", OSError, r"out\.csv cannot be written: Not a directory"),
        (tmp_path, ValueError, "is not a regular file"),
    ):
        with pytest.raises(error, match=message), writing(path):
            pytest.fail("the block must not be entered")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def rows_that_stop(after):
    yield from ROWS[:after]
    raise KeyboardInterrupt


@pytest.mark.parametrize("after", [0, 1, 2])
def test_what_is_written_of_rows_that_stop_is_whole(after):
    file = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        write_json(file, rows_that_stop(after), CLASSES, {"version": "1"})
    paths = [image["path"] for image in json.loads(file.getvalue())["images"]] if after else []
    assert paths == [str(row.path) for row in ROWS[:after]]
    assert bool(file.getvalue()) is bool(after)

    file = io.StringIO(newline="")
    with pytest.raises(KeyboardInterrupt):
        write_csv(file, rows_that_stop(after), CLASSES)
    assert [row["path"] for row in csv.DictReader(io.StringIO(file.getvalue(), newline=""))] == paths
    assert bool(file.getvalue()) is bool(after)


def test_no_rows_are_an_empty_table():
    file = io.StringIO()
    write_json(file, [], CLASSES, {})
    assert json.loads(file.getvalue()) == {"classes": CLASSES, "images": []}
    file = io.StringIO()
    write_csv(file, [], ["a"])
    assert file.getvalue() == '"path","class","probability","error","p(a)"\n'


FORMULAS = ["=cmd|' /C calc'!A0", "+1", "-x.png", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1"]


@pytest.mark.parametrize("text", [*FORMULAS, "'quoted", "plain=", " x"])
def test_a_safe_csv_has_no_cell_that_a_spreadsheet_would_run(text):
    file = io.StringIO(newline="")
    write_csv(file, [Row(Path(text), text, 0.5, (0.5, 1e-9)), Row(Path("x"), error=text)], ["a", text], safe=True)
    header, good, bad = csv.reader(io.StringIO(file.getvalue(), newline=""))
    for cell in (good[0], good[1], bad[3]):
        assert not cell.startswith(tuple("=+-@\t\r\n＝"))
        assert cell.removeprefix("'") == text  # how it is read back
    assert header[5] == f"p({text})"
    assert good[2:] == ["0.5", "", "0.5", "1e-09"]  # numbers stay numbers
    assert bad[:3] == ["x", "", ""]


def test_by_default_a_csv_has_every_text_as_it_is():
    file = io.StringIO(newline="")
    write_csv(file, [Row(Path("=1"), "-", 0.5, (0.5,))], ["-"])
    assert file.getvalue().splitlines()[1] == '"=1","-",0.5,"",0.5'


def test_a_byte_order_mark_for_excel(tmp_path):
    path = tmp_path / "out.csv"
    with writing(path) as file:
        write_csv(file, [Row(Path("größe.png"), error="e")], ["a"], bom=True)
    assert path.read_bytes().startswith(b'\xef\xbb\xbf"path"')
    with path.open(newline="", encoding="utf-8-sig") as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["größe.png"]
