"""The one writer of files: whole or not at all, at the place that the path means."""

from __future__ import annotations

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


def write_and_raise(path: Path, text: str, error: BaseException) -> BaseException:
    def write() -> None:
        with writing(path, keep_partial=True) as file:
            file.write(text)
            raise error

    with pytest.raises(type(error)) as raised:
        write()
    return raised.value


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_done_is_kept_beside_the_file_and_named(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("old")
    for name in ("rows.partial.csv", "rows.partial-2.csv", "rows.partial-3.csv"):  # what was kept before is kept
        raised = write_and_raise(path, name, error())
        assert raised.__notes__ == [f"{path} was not written; what was done by then is in {tmp_path / name}"]
        assert (tmp_path / name).read_text() == name
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 4


def test_a_partial_file_lies_where_the_link_points(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "real" / "rows.csv")
    write_and_raise(tmp_path / "link.csv", "done", KeyboardInterrupt())
    assert (tmp_path / "real" / "rows.partial.csv").read_text() == "done"


def test_the_longest_name_has_a_partial_file_too(tmp_path: Path) -> None:
    write_and_raise(tmp_path / ("ü" * 125 + ".csv"), "done", KeyboardInterrupt())
    assert [each.name for each in tmp_path.iterdir()] == ["ü" * 40 + ".partial.csv"]


def test_nothing_is_kept_of_nothing_and_of_what_failed_to_be_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    assert write_and_raise(path, "", KeyboardInterrupt()).__notes__ == ["nothing was written"]
    assert not hasattr(write_and_raise(path, "half a li", OSError(28, "No space left on device")), "__notes__")
    assert not hasattr(write_and_raise(path, "", RuntimeError()), "__notes__")
    assert not list(tmp_path.iterdir())
