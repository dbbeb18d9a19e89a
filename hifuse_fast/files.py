"""One way to write a file: whole or not at all, and at the place that its path means."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, cast

STDOUT = "-"  #: as a path, the standard output
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # what a write may fail with, without a word of which file
_UNFINISHED = re.compile(r"\.[0-9a-f]{12}\.tmp")  # names of `_unfinished`


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The path of a new, empty file, which takes the place of `path` when the block ends; it vanishes when the block raises.

    The new file is on the disk before it takes the place, and the place before the block is left: a power cut leaves the old
    file or the new one, and never less.

    The new file lies beside the old one under a short name of its own, and is made at once: a folder that is absent or
    read-only is found before any work. A link keeps being one, and the file that it points to is replaced. The permissions are
    those of the old file, else what the umask leaves.

    Args:
        path: the file to be written.

    Raises:
        ValueError: `path` is there and is no regular file.
        OSError: its folder is absent or cannot be written, or there is no room for the file.
    """
    target, unfinished = _begin(path)
    try:
        mode = stat.S_IMODE((target if target.exists() else unfinished).stat().st_mode)
        yield unfinished
        sync(unfinished)
        unfinished.chmod(mode)  # what wrote the file may have made it anew, by rules of its own
        unfinished.replace(target)
        sync_folder(target.parent)
    except KeyboardInterrupt as error:
        if unfinished.exists():
            error.add_note("nothing was written")
        raise
    except OSError as error:
        if error.filename is None and error.errno in _NO_ROOM:
            raise OSError(error.errno, f"output {path} cannot be written: {error.strerror}") from None
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Raise what `replacing` raises at once, before work that takes minutes and ends in a call of it."""
    _, unfinished = _begin(path)
    unfinished.unlink()


@contextlib.contextmanager
def making_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The path of a new, empty folder, which becomes `path` when the block ends; it vanishes when the block raises.

    Raises:
        FileExistsError: `path` is there, or is when the block ends.
        OSError: its parent is absent or cannot be written.
    """
    target = Path(path)
    unfinished = _unfinished(target)
    try:
        unfinished.mkdir()
    except OSError as error:
        raise OSError(error.errno, f"folder {path} cannot be written: {error.strerror}") from None
    try:
        yield unfinished
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, f"folder {path} cannot be written: it is there already")
        unfinished.rename(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """A text file in UTF-8 for `path`: as `replacing` has it, or where `path` is "-" or a device or pipe, that itself.

    Names of files that are not UTF-8 keep their bytes. Lines end as they are written.

    Args:
        path: the file to be written.

    Raises:
        ValueError, OSError: see `replacing`.
    """
    if os.fspath(path) in (STDOUT, "/dev/stdout"):
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="")
        yield sys.stdout
        sys.stdout.flush()
    elif is_stream(path):
        with _open(Path(path)) as file:
            yield file
    else:
        with replacing(path) as unfinished, _open(unfinished) as file:
            yield file


def is_unfinished(path: Path) -> bool:
    """Whether it is a file that `replacing` made, and whose process may have been killed."""
    return _UNFINISHED.fullmatch(path.name) is not None and path.is_file()


def target_of(path: str | os.PathLike[str]) -> Path:
    """The file that a path means, through links, whether it is there or not; ValueError where it is no regular file."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise ValueError(f"output {path} exists and is not a regular file")
    return target


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether what is written to `path` goes on at once and cannot be taken back: the standard output, a device, a pipe."""
    name = str(os.fspath(path))
    if name in (STDOUT, "/dev/stdout", "/dev/stderr") or name.startswith("/dev/fd/"):  # also where that is a regular file
        return True
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def sync(path: Path) -> None:
    """Have what was written to a file on the disk, and not only in the system's memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Have the names of a folder's files on the disk, where its file system can be told so."""
    with contextlib.suppress(OSError):
        sync(path)


def _open(path: Path) -> TextIO:
    return cast(TextIO, path.open("w", encoding="utf-8", errors="surrogateescape", newline=""))


def _begin(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The file that is to be replaced, and a new, empty one beside it; see `replacing`."""
    target = target_of(path)
    unfinished = _unfinished(target)
    try:
        _make(unfinished)
    except OSError as error:
        raise OSError(error.errno, f"output {path} cannot be written: {error.strerror}") from None
    return target, unfinished


def _unfinished(target: Path) -> Path:
    """A name beside `target` for what is to take its place."""
    return target.with_name(f".{uuid.uuid4().hex[:12]}.tmp")


def _make(path: Path) -> None:
    """A new, empty file, with the permissions that the umask leaves; FileExistsError where there is one."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
