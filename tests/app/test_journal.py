"""journal.py: whatever is killed and resumed, or shared, the results are those of one run that nothing disturbed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hifuse_fast.app.journal import Journal, write_results
from hifuse_fast.app.output import Row
from hifuse_fast.app.share import Share

FACTS = {"model": "tiny", "nested": {"x": [1.5, None]}}
ROWS = [
    Row(Path(f"{i}\udcff\n.png"), "a", 0.1 + i / 7, (0.1 + i / 7, 1e-9), None, ("x",), pages=2, largest=i)
    if i % 3
    else Row(Path(f"{i}.png"), error="no image")
    for i in range(11)
]


class Run:
    """A run of rows with a batch size of 2, which is told when to stop."""

    def __init__(self, output: Path, share: Share = Share(), *, stop_after: int | None = None) -> None:  # noqa: B008
        self.output, self.share, self.stop_after = output, share, stop_after
        self.asked = -1
        self.seen: list[Row] = []

    def rows_after(self, kept: int) -> Iterator[Row]:
        self.asked = kept
        own = [ROWS[i] for i in self.share.indices(len(ROWS), 2)]
        for done, row in enumerate(own[kept:], kept):
            if done == self.stop_after:
                raise KeyboardInterrupt
            yield row

    def watch(self, rows: Any) -> Iterator[Row]:
        for row in rows:
            self.seen.append(row)
            yield row

    def __call__(self, *, resume: bool = False, facts: dict[str, Any] = FACTS) -> bool:
        """Whether it was left to be done."""
        journal = Journal(self.output, self.share, resume=resume)
        if not journal.finished:
            write_results(self.output, self.rows_after, write, self.watch, journal, facts, len(ROWS), 2)
        return not journal.finished


def write(file: Any, rows: Iterator[Row]) -> None:
    file.writelines(f"{row!r}\n" for row in rows)


EXPECTED = "".join(f"{row!r}\n" for row in ROWS)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("stop", range(1, 11))
def test_a_run_goes_on_after_whole_batches(tmp_path: Path, stop: int) -> None:
    out = tmp_path / "out"
    out.write_text("old")
    with pytest.raises(KeyboardInterrupt) as raised:
        Run(out, stop_after=stop)()
    kept = tmp_path / "out.partial"
    assert raised.value.__notes__ == [f"{stop} of 11 rows are kept in {kept}, and --resume goes on after them"]
    assert out.read_text() == "old"
    again = Run(out)
    assert again(resume=True)
    assert again.asked == stop // 2 * 2
    assert again.seen == ROWS  # also those that were kept: what is said of them is said again
    assert out.read_text() == EXPECTED
    assert names(tmp_path) == ["out"]
    assert not Run(out)(resume=True)


def test_a_row_that_was_cut_off_counts_for_nothing(tmp_path: Path) -> None:
    """At whichever byte: of the header, of a row, or in between; also where a disk left zeros."""
    out, kept = tmp_path / "out", tmp_path / "out.partial"
    with pytest.raises(KeyboardInterrupt):
        Run(out, stop_after=5)()
    whole = kept.read_bytes()
    for size in [*range(0, len(whole), 37), len(whole) - 1]:
        for rest in (b"", b"\0" * 9, b"\0\n" + whole):
            kept.write_bytes(whole[:size] + rest)
            assert Run(out)(resume=True)
            assert out.read_text() == EXPECTED
            assert names(tmp_path) == ["out"]


def test_nothing_is_kept_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as raised:
        Run(tmp_path / "out", stop_after=0)()
    assert raised.value.__notes__ == ["nothing was written"]
    assert names(tmp_path) == []
    Run(tmp_path / "out")(resume=True)  # of nothing
    assert names(tmp_path) == ["out"]


def test_rows_of_other_facts_are_not_continued_and_not_lost(tmp_path: Path) -> None:
    out, kept = tmp_path / "out", tmp_path / "out.partial"
    with pytest.raises(KeyboardInterrupt):
        Run(out, stop_after=1)()
    before = kept.read_bytes()
    other = {"nested": {"x": [1.5, 0]}, "window": [40.0, 400.0]}
    message = r"model was 'tiny' and is None; nested was {'x': \[1.5, None\]} and is {'x': \[1.5, 0\]}; window was None and is"
    with pytest.raises(ValueError, match=f"output {out} cannot be resumed, because its rows were made with others: {message}"):
        Run(out)(resume=True, facts=other)
    with pytest.raises(ValueError, match=rf"output {out} has rows of a run that did not end, in {kept}: --resume goes on"):
        Run(out)()
    with pytest.raises(ValueError, match=r"of another number of processes, in .*, and this is one of 2"):
        Run(out, Share(1, 2))(resume=True)
    assert kept.read_bytes() == before
    assert names(tmp_path) == ["out.partial"]


@pytest.mark.parametrize("text", ["notes\n", "notes", '["facts"]\n'])
def test_a_file_of_somebody_else_is_not_taken_for_a_journal(tmp_path: Path, text: str) -> None:
    (tmp_path / "out.partial").write_text(text)
    with pytest.raises(ValueError, match=r"out\.partial is no journal; move it away"):
        Run(tmp_path / "out")(resume=True)
    assert (tmp_path / "out.partial").read_text() == text


def test_a_disk_that_is_full_leaves_the_rows_that_are_whole(tmp_path: Path) -> None:
    class Full:
        def write(self, _: Any) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            pass

    out = tmp_path / "out"
    journal = Journal(out, Share(), resume=False)

    def fill() -> Iterator[Row]:
        yield from ROWS[:4]
        journal._file.close()
        journal._file = Full()  # type: ignore[assignment]
        yield ROWS[4]

    with pytest.raises(OSError, match=f"output {out} cannot be written: No space left on device") as raised:
        write_results(out, lambda _: fill(), write, iter, journal, FACTS, len(ROWS), 2)
    assert raised.value.__notes__ == [f"4 of 11 rows are kept in {out}.partial, and --resume goes on after them"]
    again = Run(out)
    assert again(resume=True)
    assert (again.asked, out.read_text()) == (4, EXPECTED)


def test_two_processes_do_not_write_one_journal(tmp_path: Path) -> None:
    out = tmp_path / "out"
    one, other = Journal(out, Share(), resume=False), Journal(out, Share(), resume=False)
    with one.opened(FACTS, 2, 1):
        with (
            pytest.raises(ValueError, match="is being written by another process"),
            other.opened(FACTS, 2, 1),
        ):
            pass
        assert names(tmp_path) == ["out.partial"]


@pytest.mark.parametrize("world", [2, 3, 7])
def test_the_last_of_several_processes_writes_the_results_of_one(tmp_path: Path, world: int) -> None:
    out = tmp_path / "out"
    order = random.Random(world).sample(range(world), world)
    stopped = order[0]
    with pytest.raises(KeyboardInterrupt):
        Run(out, Share(stopped, world), stop_after=1)()
    for rank in order[1:]:
        assert Run(out, Share(rank, world))()
        assert not out.exists()
    assert Run(out, Share(order[-1], world))(resume=True)  # torchrun starts all of them again
    assert not out.exists()
    assert Run(out, Share(stopped, world))(resume=True)
    assert out.read_text() == EXPECTED
    assert names(tmp_path) == ["out"]
    assert not Run(out, Share(order[-1], world))(resume=True)


def test_processes_with_other_facts_do_not_come_together(tmp_path: Path) -> None:
    out = tmp_path / "out"
    Run(out, Share(0, 2))()
    with pytest.raises(ValueError, match="model was 'tiny' and is 'base'") as raised:
        Run(out, Share(1, 2))(facts={**FACTS, "model": "base"})
    assert "all rows are kept in" in raised.value.__notes__[0]
    assert names(tmp_path) == ["out.done-0-of-2", "out.done-1-of-2"]


def test_a_link_and_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "out")
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path / "link", stop_after=3)()
    assert names(tmp_path / "real") == ["out.partial"]
    Run(tmp_path / "link")(resume=True)
    assert (tmp_path / "real" / "out").read_text() == EXPECTED
    with pytest.raises(OSError, match="cannot be written: No such file"):
        Run(tmp_path / "no" / "out")()
    with pytest.raises(ValueError, match="is not a regular file"):
        Run(tmp_path / "real")()
