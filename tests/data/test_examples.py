"""examples.py: folders and CSV files of labelled images, and the way back."""

import csv
import os

import pytest

from hifuse_fast.data.examples import Example, classes_of, read_examples, write_examples
from tests.support.examples import save_class, save_splits


def test_a_folder_with_splits(tmp_path):
    data = save_splits(tmp_path / "data", train=2, val=1, test=1)
    (data / "train" / "dark" / "notes.txt").write_text("")
    save_class(data / "train", 1, 0)  # an image beside the folders of classes
    (data / ".hidden").mkdir()
    said = []
    examples = read_examples(data, note=said.append)
    assert [(e.split, e.label, e.path.name) for e in examples] == [
        ("train", "dark", "000.png"), ("train", "dark", "001.png"),
        ("train", "light", "000.png"), ("train", "light", "001.png"),
        ("val", "dark", "000.png"), ("val", "light", "000.png"), ("test", "dark", "000.png"), ("test", "light", "000.png"),
    ]  # fmt: skip
    assert said == [
        f"{data / 'train'}: 1 images, such as 000.png, lie in no folder of a class and were not read.",
        f"{data / 'train' / 'dark'}: 1 file was not read: 1 .txt.",
    ]
    assert classes_of(examples) == ["dark", "light"]


def test_a_folder_of_classes_and_everything_below_them(tmp_path):
    save_class(tmp_path / "b" / "deep", 1, 0)
    save_class(tmp_path / "a", 2, 0)
    assert [(e.label, e.split) for e in read_examples(tmp_path)] == [("a", ""), ("a", ""), ("b", "")]


def test_groups_by_a_pattern_over_the_path(tmp_path):
    for patient in ("p1", "p2"):
        save_class(tmp_path / "a" / f"{patient}-left", 1, 0)
    assert [e.group for e in read_examples(tmp_path, r"p\d")] == ["p1", "p2"]
    assert [e.group for e in read_examples(tmp_path, r"(\d)-left")] == ["1", "2"]
    with pytest.raises(ValueError, match=r"group_by 'p2' finds no group in a/p1-left/000\.png"):
        read_examples(tmp_path, "p2")
    with pytest.raises(ValueError, match="must be a column or a regular expression, got '\\('"):
        read_examples(tmp_path, "(")


def test_a_csv_file_there_and_back(tmp_path):
    names = ["a,b.png", 'c"d.png', "e\nf.png", os.fsdecode(b"\xff.png"), "größe.png"]
    paths = save_class(tmp_path, len(names), 0)
    for path, name in zip(paths, names, strict=True):
        path.rename(tmp_path / name)
    splits = ["train", "val", "test", "train", "val"]
    examples = [Example(tmp_path / name, f"class {i}, {i}", f"g{i}", splits[i]) for i, name in enumerate(names)]
    write_examples(tmp_path / "splits.csv", examples)
    assert read_examples(tmp_path / "splits.csv") == examples


def test_paths_of_a_csv_file_are_below_its_folder_and_a_column_has_the_groups(tmp_path):
    save_class(tmp_path / "images", 2, 0)
    table = tmp_path / "table.csv"
    with table.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("label", "patient", "path"), ("x", "7", "images/000.png"), ("y", "8", "images/001.png")])
    assert read_examples(table, "patient") == [
        Example(tmp_path / "images" / "000.png", "x", "7"), Example(tmp_path / "images" / "001.png", "y", "8"),
    ]  # fmt: skip
    assert [e.group for e in read_examples(table, r"\d(?=\.png)")] == ["0", "1"]
    assert [e.group for e in read_examples(table)] == ["", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has no column label and no column path"),
        ("path,class\na.png,x\n", r"has no column label; its columns are \['path', 'class'\]"),
        ("path,label\n", "has no rows"),
        ("path,label\na.png,\n", "line 2 has no label"),
        ("path,label\n,x\n", "line 2 has no path"),
        ("path,label\na.png,x\na.png,y\n", "a.png is there twice"),
        ("path,label,split\na.png,x,dev\n", "line 2: split must be one of train, val, test, got 'dev'"),
        ("path,label,split\na.png,x,train\nb.png,x,\n", "1 rows have no split, such as that of .*b.png"),
        ("path,label,group\na.png,x,g\nb.png,x,\n", "1 rows have no group"),
        ("path,label\nabsent.png,x\n", "line 2: .*absent.png: no such file"),
        ('path,label\n"a.png,x\n', "unexpected end of data"),
    ],
)
def test_a_csv_file_that_does_not_fit_is_refused(tmp_path, text, message):
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    table = tmp_path / "table.csv"
    table.write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_examples(table)


def test_a_named_column_must_have_a_group_in_every_row(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "t.csv").write_text("path,label,patient\na.png,x,\n")
    with pytest.raises(ValueError, match="1 rows have no group"):
        read_examples(tmp_path / "t.csv", "patient")


def test_a_folder_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data .*absent: no such file or folder"):
        read_examples(tmp_path / "absent")
    with pytest.raises(ValueError, match="must have a folder for each class, got none"):
        read_examples(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="class 'a' has no images"):
        read_examples(tmp_path)
    save_splits(tmp_path / "data", 1, 1)
    (tmp_path / "data" / "valid").mkdir()
    with pytest.raises(ValueError, match="its folders must be train, val, test; got valid"):
        read_examples(tmp_path / "data")
