"""The image files that folders hold, and what else is there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from hifuse_fast.data.decode import FORMATS

SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
_NAMED = 8  #: how many suffixes a summary names


@dataclass
class Found:
    """The images to read, and how many files of folders are none by their suffix ("" where they have none)."""

    images: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def summary_of_others(self) -> str | None:
        """ "5 files were not read: 3 .dcm, 1 .gif, 1 without a suffix"; None where all were."""
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
    return find_images(paths).images


def find_images(paths: Iterable[str | os.PathLike[str]]) -> Found:
    """The image files that `paths` name, and how many other files their folders hold.

    A file is taken whatever its suffix, also where it cannot be read. Of a folder are taken, sorted by path, the files with one
    of `SUFFIXES` (any case). Files and folders below it whose names begin with a dot are left out and not counted. Links to
    folders are followed. A folder that can be reached in several ways is listed once, by its own path where that is below an
    argument. The order of `paths` is kept; a file named twice is listed once.

    Raises:
        TypeError: `paths` is one path and not a sequence of paths.
        FileNotFoundError: a path that does not exist.
        OSError: a folder that cannot be read.
    """
    if isinstance(paths, (str, os.PathLike)):
        raise TypeError(f"paths must be a sequence of files and folders, got the single path {os.fspath(paths)!r}")
    images: dict[str, Path] = {}
    others: Counter[str] = Counter()
    visited: set[tuple[int, int]] = set()
    for path in map(Path, paths):
        if _is_missing(path):
            raise FileNotFoundError(f"{path}: no such file or folder")
        below = sorted(_files_below(path, visited)) if os.path.isdir(path) else [path]
        for file in below:
            suffix = file.suffix.lower()
            if file == path or suffix in SUFFIXES:
                images.setdefault(os.path.abspath(file), file)
            else:
                others[suffix] += 1
    return Found(list(images.values()), others)


def _is_missing(path: Path) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # such as a folder without permission: the attempt to read the file names the reason
        return False
    return False


def _files_below(folder: Path, visited: set[tuple[int, int]]) -> Iterator[Path]:
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
        yield from (Path(parent, name) for name in names if not name.startswith("."))
    for link in sorted(links):
        yield from _files_below(link, visited)


def _raise(error: OSError) -> NoReturn:
    raise error
