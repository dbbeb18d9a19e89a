"""arrange.py and published.py: downloads become splits with the published counts; what is not as it should be is named."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hifuse_fast.app.training.configuration import Configuration, read_toml
from hifuse_fast.cli import main
from hifuse_fast.data.arrange import arrange, split_exactly
from hifuse_fast.data.check import check_examples
from hifuse_fast.data.examples import Example, read_examples
from hifuse_fast.data.published import COVID_CLASSES, DATA_SETS, ISIC_CLASSES, KVASIR_CLASSES
from tests.support.downloads import ISIC, covid, isic, kvasir, save


def counts(parts: list[str], examples: list[Example]) -> dict[str, Counter[str]]:
    pairs = list(zip(parts, examples, strict=True))
    return {split: Counter(e.label for part, e in pairs if part == split) for split in ("train", "val", "test")}


def test_the_counts_are_the_published_ones() -> None:
    """ISIC2018: 98/154/329/34/333/2011/42 to test with; COVID-CT: 87 and 99; Kvasir: half of 500 of each class."""
    assert sum(ISIC_CLASSES.values()) == 10015
    for name, tested, validated in (
        ("isic2018", [98, 154, 329, 34, 333, 2011, 42], [32, 51, 109, 11, 111, 670, 14]),
        ("covid-ct", [87, 99], [52, 59]),
        ("kvasir", [250] * 8, [50] * 8),
    ):
        data_set = DATA_SETS[name]
        examples = [Example(Path(f"{label}-{i}"), label) for label, n in data_set.counts.items() for i in range(n)]
        folds = split_exactly(examples, data_set.test, data_set.val, data_set.folds, 0)
        assert len(folds) == data_set.folds
        for parts in folds:
            found = counts(parts, examples)
            assert [found["test"][label] for label in data_set.counts] == tested
            assert [found["val"][label] for label in data_set.counts] == validated


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_recipes_are_the_official_one(name: str) -> None:
    path = Path(str(resources.files("hifuse_fast.data").joinpath("recipes", f"{name}.toml")))
    assert Configuration.from_dict(read_toml(path)) == Configuration(model="hifuse_small")


def test_two_folds_test_each_image_once() -> None:
    examples = [Example(Path(f"{label}-{i}"), label) for label in "abc" for i in range(20)]
    one, other = split_exactly(examples, Fraction(1, 2), Fraction(1, 10), 2, 7)
    assert [(a == "test") + (b == "test") for a, b in zip(one, other, strict=True)] == [1] * 60
    assert split_exactly(examples, Fraction(1, 2), Fraction(1, 10), 2, 7) == [one, other]
    assert split_exactly(examples, Fraction(1, 2), Fraction(1, 10), 2, 8) != [one, other]


@pytest.mark.parametrize("seed", range(5))
def test_groups_and_equal_files_stay_together_and_the_numbers_are_exact(seed: int) -> None:
    examples = [Example(Path(f"{i}"), "ab"[i % 2], f"lesion {i // 6}" if i < 60 else "", digest=f"{i}") for i in range(100)]
    examples += [Example(Path(f"{i}"), "a", digest=f"{i - 40}") for i in range(100, 103)]  # as 60, 61 and 62: of both classes
    [parts] = split_exactly(examples, Fraction(3, 10), Fraction(1, 10), 1, seed)
    found = counts(parts, examples)
    assert (found["test"], found["val"]) == (Counter(a=15, b=15), Counter(a=5, b=5))
    for key in ("group", "digest"):
        for value in {getattr(e, key) for e in examples} - {""}:
            assert len({part for part, e in zip(parts, examples, strict=True) if getattr(e, key) == value}) == 1


def test_groups_that_leave_no_way_to_the_numbers() -> None:
    examples = [Example(Path(f"{i}"), "a", f"{i // 8}") for i in range(16)]
    with pytest.raises(ValueError, match=r"cannot have their exact numbers: 8 images that belong together, such as 8? ?0?"):
        split_exactly(examples, Fraction(1, 4), Fraction(1, 4), 1, 0)


def test_isic(tmp_path: Path) -> None:
    source = isic(tmp_path / "source")
    tables = arrange("isic2018", source, tmp_path / "dest", allow_other_counts=True)
    assert tables[""][0] == {
        "class": "AKIEC", "images": 10, "published": 327, "train": 6, "val": 1, "test": 3, "published test": 98,
    }  # fmt: skip
    assert tables[""][-1] == {
        "class": "all", "images": 70, "published": 10015, "train": 42, "val": 7, "test": 21, "published test": 3001,
    }  # fmt: skip
    examples = read_examples(tmp_path / "dest" / "splits.csv")
    of_folders = read_examples(tmp_path / "dest")
    assert {(e.path, e.label, e.split) for e in examples} == {(e.path, e.label, e.split) for e in of_folders}
    assert all(e.path.is_symlink() and e.path.resolve().parent == source / f"{ISIC}_Input" for e in examples)
    assert not [text for text in check_examples(examples) if "group" in text]  # which raises for a lesion on both sides
    assert len({e.group for e in examples}) == 42  # of 70 images: every third lesion has three
    rows = {row[0]: row for row in (line.split(",") for line in (source / f"{ISIC}_LesionGroupings.csv").read_text().split())}
    assert all(rows[e.path.stem][1] == e.group for e in examples)
    settings = read_toml(tmp_path / "dest" / "train.toml")
    assert settings["data"] == str(tmp_path / "dest" / "splits.csv")
    assert Configuration.from_dict(settings).model == "hifuse_small"
    by_image = arrange("isic2018", source, tmp_path / "other", by_image=True, copy=True, allow_other_counts=True)
    assert by_image == tables
    others = read_examples(tmp_path / "other" / "splits.csv")
    assert not any(e.group or e.path.is_symlink() for e in others)
    shutil.rmtree(source)
    assert all(e.path.read_text() == e.path.stem for e in others)


def test_kvasir(tmp_path: Path) -> None:
    arrange("kvasir", kvasir(tmp_path / "source"), tmp_path / "dest", allow_other_counts=True)
    folds = [read_examples(tmp_path / "dest" / f"fold-{number}" / "splits.csv") for number in (1, 2)]
    tested = [{e.path.name for e in fold if e.split == "test"} for fold in folds]
    assert not tested[0] & tested[1]
    assert [len(names) for names in tested] == [40, 40]
    assert Counter(e.split for e in folds[1]) == {"train": 32, "val": 8, "test": 40}
    assert {e.label for e in folds[0]} == set(KVASIR_CLASSES)


def test_kvasir_of_an_archive(tmp_path: Path) -> None:
    source = kvasir(tmp_path / "source")
    arrange("kvasir", source, tmp_path / "dest", allow_other_counts=True)
    shutil.make_archive(str(source / "kvasir-dataset"), "zip", source, "kvasir-dataset")
    shutil.rmtree(source / "kvasir-dataset")
    arrange("kvasir", source, tmp_path / "other", allow_other_counts=True)
    texts = [(tmp_path / name / "fold-2" / "splits.csv").read_text() for name in ("dest", "other")]
    assert texts[0] == texts[1]
    shutil.rmtree(tmp_path / "source")
    kvasir(source, 4)
    shutil.rmtree(source / "kvasir-dataset" / "polyps")
    with pytest.raises(FileNotFoundError, match=r"must have the folder .*polyps, or polyps\.zip in its place"):
        arrange("kvasir", source, tmp_path / "third", allow_other_counts=True)


def test_covid_of_archives_and_of_folders(tmp_path: Path) -> None:
    source = covid(tmp_path / "source")
    tables = arrange("covid-ct", source, tmp_path / "dest", seed=3)
    assert [tuple(row.values()) for row in tables[""]] == [
        ("CT_COVID", 349, 349, 210, 52, 87, 87), ("CT_NonCOVID", 397, 397, 239, 59, 99, 99),
        ("all", 746, 746, 449, 111, 186, 186),
    ]  # fmt: skip
    for label in COVID_CLASSES:
        shutil.unpack_archive(source / "Images-processed" / f"{label}.zip", source)
    shutil.rmtree(source / "Images-processed")
    arrange("covid-ct", source, tmp_path / "other", seed=3)
    texts = [(tmp_path / name / "splits.csv").read_text() for name in ("dest", "other")]
    assert texts[0] == texts[1]
    assert not (tmp_path / "dest" / "test" / "CT_COVID" / "2020.01 0%0.jpg").is_symlink()


def change(source: Path, name: str, old: str, new: str) -> None:
    path = source / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


TRUTH, LESIONS = f"{ISIC}_GroundTruth/{ISIC}_GroundTruth.csv", f"{ISIC}_LesionGroupings.csv"
FAULTS: dict[str, tuple[Any, str]] = {
    "no truth": (lambda s: (s / TRUTH).unlink(), f"must have the file {ISIC}_GroundTruth.csv, there or in"),
    "no lesions": (lambda s: (s / LESIONS).unlink(), f"must have the file {ISIC}_LesionGroupings.csv, .*--by-image does"),
    "no images": (lambda s: shutil.rmtree(s / f"{ISIC}_Input"), f"must have the folder .*{ISIC}_Input, or {ISIC}_Input.zip"),
    "empty": (lambda s: [p.unlink() for p in (s / f"{ISIC}_Input").iterdir()], "source has no images in"),
    "a class": (lambda s: change(s, TRUTH, "BKL", "BLK"), "it has no column BKL"),
    "two classes": (lambda s: change(s, TRUTH, "24306,0.0", "24306,1.0"), "image ISIC_0024306 must have 1 in the column"),
    "half": (lambda s: change(s, TRUTH, "24306,0.0", "24306,0.5"), "image ISIC_0024306 must have 1 in the column of one"),
    "no number": (lambda s: change(s, TRUTH, "24306,0.0", "24306,x"), "image ISIC_0024306: could not convert string"),
    "short": (lambda s: change(s, TRUTH, "24306,0.0,", "24306,"), "line 2 has more or fewer cells"),
    "twice": (lambda s: change(s, TRUTH, "0024307", "0024306"), "image ISIC_0024306 is there twice"),
    "a file": (lambda s: (s / f"{ISIC}_Input" / "ISIC_0024310.jpg").unlink(), "1 image files are missing, .*ISIC_0024310"),
    "a row": (lambda s: save(s / f"{ISIC}_Input" / "ISIC_1.jpg", ""), "1 rows are missing, such as for ISIC_1"),
    "a lesion": (lambda s: change(s, LESIONS, "ISIC_0024311", "ISIC_9"), "LesionGroupings.csv: 1 image files are missing"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_source_that_is_not_what_it_should_be(tmp_path: Path, fault: str) -> None:
    source = isic(tmp_path / "source", 5)
    plant, message = FAULTS[fault]
    plant(source)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        arrange("isic2018", source, tmp_path / "dest", allow_other_counts=True)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_archives_that_are_damaged(tmp_path: Path) -> None:
    source = covid(tmp_path / "source", {"CT_COVID": 8, "CT_NonCOVID": 8})
    archive = source / "Images-processed" / "CT_COVID.zip"
    whole = archive.read_bytes()
    archive.write_bytes(whole.replace(b"CT_COVID 5", b"CT_COVID 6", 1))
    with pytest.raises(ValueError, match=r"CT_COVID.zip: CT_COVID/2020.01 5%0.png cannot be read: Bad CRC-32"):
        arrange("covid-ct", source, tmp_path / "dest", allow_other_counts=True)
    other = covid(tmp_path / "other", {"CT_COVID": 8, "CT_NonCOVID": 8})
    (other / "Images-processed" / "CT_COVID.zip").write_bytes(whole[:300])
    with pytest.raises(ValueError, match=r"CT_COVID\.zip is no zip archive, or a damaged one"):
        arrange("covid-ct", other, tmp_path / "dest", allow_other_counts=True)
    assert not (tmp_path / "dest").exists()


def test_wrong_counts_name_the_numbers(tmp_path: Path) -> None:
    source = covid(tmp_path / "source", {"CT_COVID": 348, "CT_NonCOVID": 397})
    message = "COVID-CT, of which 746 are published: 348 of CT_COVID, and 349 are published; --allow-other-counts goes on"
    with pytest.raises(ValueError, match=message):
        arrange("covid-ct", source, tmp_path / "dest")
    assert arrange("covid-ct", source, tmp_path / "dest", allow_other_counts=True)[""][0]["test"] == 87


def test_the_destination_is_new_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, dest = isic(tmp_path / "source", 5), tmp_path / "dest"
    for there in (dest.mkdir, lambda: dest.write_text("mine"), lambda: dest.symlink_to("nowhere")):
        there()
        with pytest.raises(ValueError, match=f"dest {dest} is there already: name a new folder"):
            arrange("isic2018", source, dest, allow_other_counts=True)
        dest.rmdir() if dest.is_dir() else dest.unlink()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "symlink", fail)
    with pytest.raises(OSError, match="No space left"):
        arrange("isic2018", source, dest, allow_other_counts=True)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    with pytest.raises(OSError, match=r"folder .*no.dest cannot be written: No such file or directory"):
        arrange("isic2018", source, tmp_path / "no" / "dest", allow_other_counts=True)
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        arrange("isic2018", tmp_path / "nowhere", dest)


def test_the_command_shows_counts_beside_the_published_ones(tmp_path: Path) -> None:
    source = kvasir(tmp_path / "source", 10)
    refused = CliRunner().invoke(main, ["data", "kvasir", str(source), str(tmp_path / "dest")])
    assert refused.exit_code == 2
    assert "10 of esophagitis, and 500 are published" in refused.stderr
    done = CliRunner().invoke(main, ["data", "kvasir", str(source), str(tmp_path / "dest"), "--allow-other-counts"])
    assert done.exit_code == 0, done.output
    cells = [line.split("│")[1:-1] for line in done.stdout.splitlines() if "polyps" in line]
    assert [cell.strip() for cell in cells[0]] == ["dyed-lifted-polyps", "10", "500", "4", "1", "5", "250"]
    config = tmp_path / "dest" / "fold-2" / "train.toml"
    assert f"Train with: hifuse-fast train --config {config} --output RUN" in done.stderr
