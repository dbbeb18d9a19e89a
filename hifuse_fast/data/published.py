"""The paper's three data sets: what is published of their counts, and their public downloads as labelled images."""

from __future__ import annotations

import csv
import functools
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath

from hifuse_fast.data.decode import FORMATS

_SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
_LARGEST = 2**28  # bytes of a file in an archive
_ISIC = "ISIC2018_Task3_Training"


@dataclass(frozen=True)
class Item:
    """An image of a download: a file, or a member of a zip archive."""

    path: Path  #: of the file, or of the archive
    member: str = ""
    label: str = ""
    group: str = ""  #: such as the lesion; "" where nothing is known

    @property
    def name(self) -> str:
        """Its name, without folders."""
        return PurePosixPath(self.member).name if self.member else self.path.name

    def read(self) -> bytes:
        """Its content."""
        if not self.member:
            return self.path.read_bytes()
        archive = _opened(self.path)
        size = archive.getinfo(self.member).file_size
        if size > _LARGEST:
            raise ValueError(f"source {self.path}: {self.member} has {size} bytes, more than {_LARGEST}")
        try:
            return archive.read(self.member)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"source {self.path}: {self.member} cannot be read: {error}") from None


@dataclass(frozen=True)
class Published:
    """A data set as it is published: images a class, and the shares of its parts, of each class and rounded down."""

    title: str
    counts: dict[str, int]
    test: Fraction
    val: Fraction
    read: Callable[[Path, bool], list[Item]]  #: the download, and whether groups are left out -> its images
    folds: int = 1  #: 2: each half is the test part once

    def check(self, items: Sequence[Item]) -> None:
        """ValueError unless there are as many images of each class as are published."""
        found = Counter(item.label for item in items)
        wrong = [f"{n} of {label}, and {self.counts.get(label, 0)} are published"
                 for label in sorted({*found, *self.counts}) if (n := found[label]) != self.counts.get(label, 0)]  # fmt: skip
        if wrong:
            raise ValueError(
                f"source has other images than {self.title}, of which {sum(self.counts.values())} are published: "
                f"{'; '.join(wrong)}; --allow-other-counts goes on with them"
            )


def _read_isic(source: Path, by_image: bool) -> list[Item]:
    """Images in Training_Input, a class each in GroundTruth.csv, and the lesion of each in LesionGroupings.csv."""
    table = _find(source, f"{_ISIC}_GroundTruth.csv", f"{_ISIC}_GroundTruth")
    labels = {name: _label(table, name, row) for name, row in _table(table, set(ISIC_CLASSES)).items()}
    lesions: dict[str, str] = {}
    if not by_image:
        grouping = _find(
            source, f"{_ISIC}_LesionGroupings.csv", f"{_ISIC}_GroundTruth",
            advice="; it says which images are of one lesion, and --by-image does without",
        )  # fmt: skip
        lesions = {name: row["lesion_id"] for name, row in _table(grouping, {"lesion_id"}).items()}
    images = {PurePosixPath(item.name).stem: item for item in _images(source, f"{_ISIC}_Input")}
    _check_same(table, labels, images)
    if not by_image:
        _check_same(grouping, lesions, images)
    return [Item(item.path, item.member, labels[name], lesions.get(name, "")) for name, item in images.items()]


def _read_kvasir(source: Path, _: bool) -> list[Item]:
    """A folder for each class, in kvasir-dataset or directly in the source."""
    root = next((source / name for name in ("kvasir-dataset", "kvasir-dataset-v1") if (source / name).is_dir()), source)
    archive = source / "kvasir-dataset.zip"
    packed = archive if root == source and archive.is_file() else None
    return [item for label in KVASIR_CLASSES for item in _images(root, label, packed)]


def _read_covid(source: Path, _: bool) -> list[Item]:
    """CT_COVID and CT_NonCOVID, folders or archives, in Images-processed or directly in the source."""
    root = source / "Images-processed" if (source / "Images-processed").is_dir() else source
    return [item for label in COVID_CLASSES for item in _images(root, label)]


ISIC_CLASSES = {"AKIEC": 327, "BCC": 514, "BKL": 1099, "DF": 115, "MEL": 1113, "NV": 6705, "VASC": 142}
KVASIR_CLASSES = dict.fromkeys(
    ("dyed-lifted-polyps", "dyed-resection-margins", "esophagitis", "normal-cecum", "normal-pylorus", "normal-z-line", "polyps",
     "ulcerative-colitis"), 500,
)  # fmt: skip
COVID_CLASSES = {"CT_COVID": 349, "CT_NonCOVID": 397}

#: By the names of the command.
DATA_SETS = {
    "isic2018": Published("ISIC2018 task 3", ISIC_CLASSES, Fraction(3, 10), Fraction(1, 10), _read_isic),
    "kvasir": Published("Kvasir version 1", KVASIR_CLASSES, Fraction(1, 2), Fraction(1, 10), _read_kvasir, folds=2),
    "covid-ct": Published("COVID-CT", COVID_CLASSES, Fraction(1, 4), Fraction(3, 20), _read_covid),
}


def _find(source: Path, name: str, folder: str, advice: str = "") -> Path:
    """A file of the source, or of its folder."""
    places = [source / name, source / folder / name]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"source {source} must have the file {name}, there or in {folder}{advice}")


def _images(parent: Path, name: str, archive: Path | None = None) -> list[Item]:
    """The images of a folder, or of that folder in an archive, of its name unless given; the folder's name is their label."""
    folder, archive = parent / name, archive or parent / f"{name}.zip"
    if folder.is_dir():
        items = [Item(path, label=name) for path in sorted(folder.iterdir()) if _is_image(path.name) and path.is_file()]
    elif archive.is_file():
        items = list(_members(archive, name))
    else:
        raise FileNotFoundError(f"source must have the folder {folder}, or {archive.name} in its place")
    if not items:
        raise ValueError(f"source has no images in {folder if folder.is_dir() else f'the folder {name} of {archive}'}")
    return items


def _members(archive: Path, folder: str) -> Iterator[Item]:
    """The images of an archive that lie in a folder of this name, anywhere."""
    for name in sorted(_opened(archive).namelist()):
        place = PurePosixPath(name)
        if _is_image(place.name) and place.parent.name == folder and "__MACOSX" not in place.parts:
            yield Item(archive, name, folder)


@functools.lru_cache(maxsize=4)
def _opened(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise ValueError(f"source {archive} is no zip archive, or a damaged one: {error}") from None


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(_SUFFIXES)


def _table(path: Path, columns: set[str]) -> dict[str, dict[str, str]]:
    """The rows of a CSV file by their column image."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            missing = {"image", *columns} - set(rows.fieldnames or ())
            if missing:
                raise ValueError(f"it has no column {' and no column '.join(sorted(missing))}")
            found: dict[str, dict[str, str]] = {}
            for row in rows:
                if row["image"] in found:
                    raise ValueError(f"image {row['image']} is there twice")
                if None in row or None in row.values():
                    raise ValueError(f"line {rows.line_num} has more or fewer cells than columns")
                found[row["image"]] = row
        except (ValueError, csv.Error) as error:
            raise ValueError(f"source {path}: {error}") from None
    return found


def _label(table: Path, name: str, row: dict[str, str]) -> str:
    """The class whose column has 1, where the others have 0."""
    try:
        values = {label: float(row[label]) for label in ISIC_CLASSES}
    except ValueError as error:
        raise ValueError(f"source {table}: image {name}: {error}") from None
    chosen = [label for label, value in values.items() if value == 1]
    if len(chosen) != 1 or sum(value != 0 for value in values.values()) != 1:
        raise ValueError(
            f"source {table}: image {name} must have 1 in the column of one class and 0 in the others, got {values}"
        )
    return chosen[0]


def _check_same(table: Path, rows: dict[str, str], images: dict[str, Item]) -> None:
    """ValueError unless the rows of a table are of the images."""
    for kind, names in (("image files are missing", set(rows) - set(images)), ("rows are missing", set(images) - set(rows))):
        if names:
            raise ValueError(f"source {table}: {len(names)} {kind}, such as for {min(names)}")
