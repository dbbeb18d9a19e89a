"""The one writer of files: whole or not at all, at the place that the path means."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hifuse_fast import files
from hifuse_fast.files import is_stream, replacing, writing


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with writing(path) as file:
        file.write("a\r\nb\n")
        assert not path.exists()
    assert path.read_bytes() == b"a\r\nb\n"
    assert [each.name for each in tmp_path.iterdir()] == ["rows.csv"]


def test_what_raises_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("old")

    def write_and_stop() -> None:
        with writing(path) as file:
            file.write("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_stop()
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["rows.csv"]


def test_a_link_keeps_being_one(tmp_path: Path) -> None:
    real, link = tmp_path / "real" / "rows.csv", tmp_path / "link.csv"
    real.parent.mkdir()
    real.write_text("old")
    link.symlink_to(real)
    with writing(link) as file:
        file.write("new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_a_link_to_nothing_makes_what_it_names(tmp_path: Path) -> None:
    link = tmp_path / "link.csv"
    link.symlink_to(tmp_path / "rows.csv")
    with writing(link) as file:
        file.write("new")
    assert link.is_symlink()
    assert (tmp_path / "rows.csv").read_text() == "new"


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_is_obeyed(tmp_path: Path, mask: int, expected: int) -> None:
    path, before = tmp_path / "weights", os.umask(mask)
    try:
        with replacing(path) as unfinished:
            unfinished.unlink()  # as a library that writes a file of its own, for nobody but the user, would
            unfinished.touch(0o600)
    finally:
        os.umask(before)
    assert mode(path) == expected


def test_the_permissions_of_the_old_file_stay(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.touch(0o640)
    path.chmod(0o640)
    with replacing(path) as unfinished:
        unfinished.write_text("new")
    assert mode(path) == 0o640


def test_the_longest_name_that_a_folder_takes(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".csv")
    with writing(path) as file:
        file.write("new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("name", ["folder", "absent/rows.csv"])
def test_what_cannot_be_written_is_said_before_any_work(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises((ValueError, OSError), match=name), writing(tmp_path / name):
        pytest.fail("the block was entered")


def test_streams_are_written_directly(tmp_path: Path) -> None:
    assert is_stream("-")
    assert is_stream("/dev/null")
    assert not is_stream(tmp_path / "absent")
    with writing("/dev/null") as file:
        file.write("gone")
    code = (
        f"import runpy\nwriting = runpy.run_path({files.__file__!r})['writing']\n"  # without the package, which loads torch
        "with writing({!r}) as file:\n    file.write('a\\nb\\n')"
    )
    for path in ("-", "/dev/stdout"):
        done = subprocess.run([sys.executable, "-c", code.format(path)], capture_output=True, check=True)
        assert done.stdout == b"a\nb\n"
        with (tmp_path / "redirected").open("wb") as file:  # /dev/stdout is a link to a regular file now
            file.write(b"before\n")
            file.flush()
            subprocess.run([sys.executable, "-c", code.format(path)], stdout=file, check=True)
        assert (tmp_path / "redirected").read_bytes() == b"before\na\nb\n"


def test_a_file_is_on_the_disk_before_it_takes_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without, a power cut may leave an empty file where the old one was."""
    done: list[tuple[str, str]] = []
    replace = Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: done.append(("sync", os.readlink(f"/proc/self/fd/{number}"))))
    monkeypatch.setattr(Path, "replace", lambda self, target: done.append(("replace", str(self))) or replace(self, target))
    with writing(tmp_path / "rows.csv") as file:
        file.write("row")
        unfinished = file.name
    assert done == [("sync", unfinished), ("replace", unfinished), ("sync", str(tmp_path))]


def test_what_the_disk_does_not_take_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    path = tmp_path / "rows.csv"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"), writing(path) as file:
        file.write("new")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["rows.csv"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_file_that_has_no_room_is_named(tmp_path: Path, number: int) -> None:
    with pytest.raises(OSError, match=f"output {tmp_path / 'x'} cannot be written: ") as caught, writing(tmp_path / "x"):
        raise OSError(number, os.strerror(number))
    assert caught.value.errno == number
    assert list(tmp_path.iterdir()) == []


def test_interrupted_says_that_nothing_was_written(tmp_path: Path) -> None:
    def write() -> None:
        with writing(tmp_path / "rows.csv") as file:
            file.write("row")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        write()
    assert raised.value.__notes__ == ["nothing was written"]


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    files.check_replaceable(path)
    assert not list(tmp_path.iterdir())
    path.write_text("old")
    files.check_replaceable(path)
    assert [each.read_text() for each in tmp_path.iterdir()] == ["old"]
    with pytest.raises(OSError, match=r"output .* cannot be written: No such file"):
        files.check_replaceable(tmp_path / "nowhere" / "rows.csv")
    with pytest.raises(ValueError, match="exists and is not a regular file"):
        files.check_replaceable(tmp_path)
