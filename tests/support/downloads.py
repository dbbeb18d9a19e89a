"""The public downloads of the paper's data sets, with their layouts and few, small files."""

from __future__ import annotations

import zipfile
from pathlib import Path

from hifuse_fast.data.published import COVID_CLASSES, ISIC_CLASSES, KVASIR_CLASSES

ISIC = "ISIC2018_Task3_Training"
COLUMNS = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


def save(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def isic(source: Path, each: int = 10, *, lesions_of: int = 3) -> Path:
    """`each` images of each class; every third lesion has `lesions_of` images."""
    truth, grouping, number, lesion = ["image," + ",".join(COLUMNS)], ["image,lesion_id,diagnosis_confirm_type"], 24306, 0
    for label in ISIC_CLASSES:
        made = 0
        while made < each:
            lesion += 1
            for _ in range(min(lesions_of if lesion % 3 == 0 else 1, each - made)):
                name = f"ISIC_{number:07}"
                save(source / f"{ISIC}_Input" / f"{name}.jpg", name)
                truth.append(f"{name},{','.join('1.0' if column == label else '0.0' for column in COLUMNS)}")
                grouping.append(f"{name},HAM_{lesion:07},histopathology")
                number, made = number + 1, made + 1
    save(source / f"{ISIC}_Input" / "ATTRIBUTION.txt", "whose they are")
    save(source / f"{ISIC}_GroundTruth" / f"{ISIC}_GroundTruth.csv", "\n".join(truth) + "\n")
    save(source / f"{ISIC}_LesionGroupings.csv", "\n".join(grouping) + "\n")
    return source


def kvasir(source: Path, each: int = 10) -> Path:
    for label in KVASIR_CLASSES:
        for number in range(each):
            save(source / "kvasir-dataset" / label / f"{label}-{number}.jpg", f"{label} {number}")
    return source


def covid(source: Path, counts: dict[str, int] = COVID_CLASSES) -> Path:
    """Archives, as in the repository, with what a Mac leaves in them; names with blanks and percent signs, of both kinds."""
    (source / "Images-processed").mkdir(parents=True)
    for label, count in counts.items():
        with zipfile.ZipFile(source / "Images-processed" / f"{label}.zip", "w") as archive:
            for number in range(count):
                name = f"{label}/2020.01 {number}%0.{'png' if number % 2 else 'jpg'}"
                archive.writestr(name, f"{label} {number}")
                archive.writestr(f"__MACOSX/{label}/._{number}.png", "no image")
            archive.writestr(f"{label}/.DS_Store", "no image")
    save(source / "Data-split" / "COVID" / "trainCT_COVID.txt", "another split\n")
    return source
