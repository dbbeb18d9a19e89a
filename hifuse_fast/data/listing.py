"""The image files that folders hold, and what else is there."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, overload

from hifuse_fast.data import dicom
from hifuse_fast.data.decode import FORMATS

SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes) | frozenset(dicom.SUFFIXES)
_NAMED = 8  #: how many suffixes a summary names


class Paths(Sequence[Path]):
    """Paths of files, kept as texts, a third of what as many `Path` take: there may be millions."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._texts = list(texts)

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Paths: ...
    def __getitem__(self, index: int | slice) -> Path | Paths:
        return Paths(self._texts[index]) if isinstance(index, slice) else Path(self._texts[index])

    def take(self, indices: Iterable[int]) -> Paths:
        """Those of these indices."""
        return Paths(self._texts[i] for i in indices)

    def digest(self) -> str:
        """How many there are, and a hash of their names, in their order, and of the sizes and times of the files."""
        whole = hashlib.sha256()
        for text in self._texts:
            try:
                status = os.stat(text)
                state = f"{status.st_size} {status.st_mtime_ns}"
            except OSError:
                state = "absent"
            whole.update(os.fsencode(f"{text}\0{state}\n"))
        return f"{len(self)} files, SHA-256 of names, sizes and times {whole.hexdigest()}"


@dataclass
class Found:
    """The images to read, and how many files of folders are none by their suffix ("" where they have none)."""

    images: Paths = field(default_factory=Paths)
    others: Counter[str] = field(default_factory=Counter)

    def summary_of_others(self) -> str | None:
        """ "5 files were not read: 3 .nii, 1 .gif, 1 without a suffix"; None where all were."""
        if not self.others:
            return None
        ranked = sorted(self.others.items(), key=lambda item: (-item[1], item[0]))
        parts = [f"{count} {suffix or 'without a suffix'}" for suffix, count in ranked[:_NAMED]]
        if len(ranked) > _NAMED:
            parts.append(f"{sum(count for _, count in ranked[_NAMED:])} with other suffixes")
        total = self.others.total()
        return f"{total} file{'s were' if total > 1 else ' was'} not read: {', '.join(parts)}"


def list_images(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The image files that `paths` name: files as given, folders with everything below them. See `find_images`."""
    return list(find_images(paths).images)


def find_images(paths: Iterable[str | os.PathLike[str]]) -> Found:
    """The image files that `paths` name, and how many other files their folders hold.

    A file is taken whatever its suffix, also where it cannot be read. Of a folder are taken, sorted by path, the files with one
    of `SUFFIXES` (any case), and DICOM files without a suffix or with a number in its place. Files and folders below it whose
    names begin with a dot are left out and not counted. Links to folders are followed. A folder that can be reached in several
    ways is listed once, by its own path where that is below an argument. The order of `paths` is kept; a file named twice is
    listed once.

    Raises:
        TypeError: `paths` is one path and not a sequence of paths.
        FileNotFoundError: a path that does not exist.
        OSError: a folder that cannot be read.
    """
    if isinstance(paths, (str, os.PathLike)):
        raise TypeError(f"paths must be a sequence of files and folders, got the single path {os.fspath(paths)!r}")
    images: dict[str, str] = {}
    others: Counter[str] = Counter()
    visited: set[tuple[int, int]] = set()
    for path in map(Path, paths):
        if _is_missing(path):
            raise FileNotFoundError(f"{path}: no such file or folder")
        if not os.path.isdir(path):
            images.setdefault(os.path.abspath(path), str(path))
            continue
        for file in sorted(_files_below(path, visited), key=_in_order):
            suffix = os.path.splitext(file)[1].lower()
            if suffix in SUFFIXES or dicom.may_be_dicom(file, suffix):
                whole = os.path.abspath(file)
                images.setdefault(file if whole == file else whole, file)  # one text, where there are millions
            else:
                others[suffix] += 1
    return Found(Paths(images.values()), others)


def check_outside(name: str, folder: Path, inputs: Iterable[Path]) -> None:
    """ValueError where `folder`, called `name`, lies in a folder of `inputs`: what is written there would be read as images."""
    for path in inputs:
        if path.is_dir() and folder.resolve().is_relative_to(path.resolve()):
            raise ValueError(f"{name} must not lie in {path}, whose images are read; got {folder}")


def _in_order(path: str) -> str:
    """What sorts as `Path` does: folder by folder."""
    return path.replace(os.sep, "\0")


def _is_missing(path: Path) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # such as a folder without permission: the attempt to read the file names the reason
        return False
    return False


def _files_below(folder: Path, visited: set[tuple[int, int]]) -> Iterator[str]:
    """The files of `folder` and of the folders below it that were not visited yet; links to folders come last."""
    links = []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        links += [path for name in folders if os.path.islink(path := Path(parent, name))]
        begin = str(Path(parent, "x"))[:-1]
        yield from (begin + name for name in names if not name.startswith("."))
    for link in sorted(links):
        yield from _files_below(link, visited)


def _raise(error: OSError) -> NoReturn:
    raise error
