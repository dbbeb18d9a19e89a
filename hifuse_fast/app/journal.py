"""Rows of results kept as they come, so that a run which was stopped or killed goes on, and shares become one file.

A journal is a file beside the results, of lines of JSON: what the results are made of, then a row each. It is called
`result.csv.partial` while rows come, and `result.csv.done` once all are there; with several processes
`result.csv.partial-0-of-4`. Whoever finds that all are done writes `result.csv`, whole or not at all, and removes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import FileIO
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from hifuse_fast.app.output import Row
from hifuse_fast.app.share import Share
from hifuse_fast.files import sync, sync_folder, target_of, writing

_BEGIN = b'{"facts": '  # of a journal


class Journal:
    """The journal of one process.

    Args:
        output: the file of results.
        share: whose rows they are.
        resume: whether a journal that is there is continued.

    Raises:
        ValueError: there is a journal and it is not to be continued, or one of another number of processes; `output` is no
            regular file.
        OSError: the folder of `output` cannot be written.
    """

    def __init__(self, output: Path, share: Share, *, resume: bool) -> None:
        self.output, self.share, self._resume = output, share, resume
        self._target = target_of(output)
        self._partial, self._done = self._files(share)
        self.kept = 0  #: rows that were there when it was opened
        self.count = 0  #: rows that are there
        with self._locked():
            self._check_others()
            #: Whether there is nothing left to do: the results are there, and nothing of a run.
            self.finished = resume and self._target.exists() and not self._of_any()

    @contextlib.contextmanager
    def opened(self, facts: Mapping[str, Any], total: int, batch_size: int) -> Iterator[None]:
        """In this block rows can be kept; nobody else writes the journal meanwhile. A note on an error says where rows are.

        Args:
            facts: what the results depend on, as JSON has it.
            total: rows of all processes.
            batch_size: rows that are made together: a journal is continued after a whole batch, with the same ones to come.

        Raises:
            ValueError: a journal that is continued has other facts, which are named; or another process writes it.
        """
        self._facts = json.loads(json.dumps({"total": total, "batch_size": batch_size, **facts}))
        self._total, self._batch_size = total, batch_size
        self._own = sum(1 for _ in self.share.indices(total, batch_size))
        with self._locked():
            path = self._done if self._done.exists() else self._partial
            self._file = self._open(path)
        try:
            self.count = self.kept = self._recover(path)
        except BaseException:
            self._file.close()
            raise
        try:
            if not self.kept:
                self._write({"facts": self._facts})
            yield
        except BaseException as error:
            if self.count:
                error.add_note(f"{self.count} of {self._own} rows are kept in {path}, and --resume goes on after them")
            else:
                path.unlink(missing_ok=True)
                if isinstance(error, KeyboardInterrupt):
                    error.add_note("nothing was written")
            raise
        finally:
            self._file.close()

    def stored(self) -> Iterator[Row]:
        """The rows that were there when it was opened."""
        path = self._done if self._done.exists() else self._partial
        yield from islice(_rows(path), self.kept)

    def keep(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows as they come, each once it is kept."""
        for row in rows:
            self._write(_as_json(row))
            self.count += 1
            yield row

    def close(self, write: Callable[[Iterator[Row]], object]) -> bool:
        """End the journal; where all are ended, hand their rows to `write`, and remove them.

        Args:
            write: writes the results.

        Returns:
            Whether the results were written: not while other processes have not ended, or where another one writes them.

        Raises:
            ValueError: the journals of other processes have other facts, which are named.
        """
        if not self._done.exists():
            sync(self._partial)
            self._partial.replace(self._done)
            sync_folder(self._done.parent)
        try:
            return self._join(write)
        except BaseException as error:
            error.add_note(f"all rows are kept in {self._done}, and --resume writes the results")
            raise

    def _join(self, write: Callable[[Iterator[Row]], object]) -> bool:
        with self._locked():
            done = [self._files(Share(rank, self.share.world))[1] for rank in range(self.share.world)]
            if not all(path.exists() for path in done):
                return False
            for path in done:
                self._check_facts(path)
            write(self._together(done))
            for path in done:
                path.unlink()
        return True

    def _files(self, share: Share) -> tuple[Path, Path]:
        """The names of the journal of a share: while rows come, and after."""
        whose = f"-{share}" if share.world > 1 else ""
        return tuple(self._target.with_name(f"{self._target.name}.{state}{whose}") for state in ("partial", "done"))  # type: ignore[return-value]

    def _of_any(self) -> list[tuple[Path, int, int]]:
        """Journals of the same results, of any process, each with the rank and the number of processes."""
        name = re.compile(re.escape(self._target.name) + r"\.(?:partial|done)(?:-([0-9]+)-of-([0-9]+))?")
        found = [(path, name.fullmatch(path.name)) for path in sorted(self._target.parent.iterdir())]
        return [(path, int(match[1] or 0), int(match[2] or 1)) for path, match in found if match]

    def _check_others(self) -> None:
        """ValueError where a journal is in the way: of this rank, or of a run of another number of processes."""
        for path, rank, world in self._of_any():
            if (rank, world) == (self.share.rank, self.share.world) and not self._resume:
                raise ValueError(
                    f"output {self.output} has rows of a run that did not end, in {path}: --resume goes on after them; "
                    "or remove that file"
                )
            if world != self.share.world and (rank == self.share.rank or world == 1):
                raise ValueError(
                    f"output {self.output} has rows of a run of another number of processes, in {path}, and this is one of "
                    f"{self.share.world}: go on with as many, or remove that file"
                )

    def _open(self, path: Path) -> FileIO:
        try:
            file = open(path, "r+b" if path.exists() else "x+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise OSError(error.errno, f"output {self.output} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ValueError(f"output {self.output} is being written by another process") from None
        return file

    def _recover(self, path: Path) -> int:
        """How many rows of whole batches there are; what a kill left behind them is cut off, and the next row goes there."""
        count = kept = end = 0
        with path.open("rb") as file:
            first = file.readline()
            begun = first.partition(b"\0")[0]  # a disk may leave zeros
            if not (begun.startswith(_BEGIN) or _BEGIN.startswith(begun)):
                raise ValueError(f"output {self.output} cannot be resumed: {path} is no journal; move it away")
            header = _parsed(first)
            if header is not None:
                self._compare(header.get("facts", {}))
            place = file.tell()
            for line in file:
                if header is None or _parsed(line) is None or count == self._own:
                    break
                count, place = count + 1, place + len(line)
                if count % self._batch_size == 0 or count == self._own:
                    kept, end = count, place
        self._file.truncate(end)
        self._file.seek(end)
        return kept

    def _check_facts(self, path: Path) -> None:
        with path.open("rb") as file:
            self._compare((_parsed(file.readline()) or {}).get("facts", {}))

    def _compare(self, before: Mapping[str, Any]) -> None:
        names = [name for name in {**before, **self._facts} if before.get(name) != self._facts.get(name)]
        if names:
            changed = "; ".join(f"{name} was {before.get(name)!r} and is {self._facts.get(name)!r}" for name in names)
            raise ValueError(f"output {self.output} cannot be resumed, because its rows were made with others: {changed}")

    def _write(self, value: Mapping[str, Any]) -> None:
        rest = memoryview(json.dumps(value).encode() + b"\n")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise OSError(error.errno, f"output {self.output} cannot be written: {error.strerror}") from None

    def _together(self, done: list[Path]) -> Iterator[Row]:
        """All rows in the order of the images, which is by turns that of the processes' batches."""
        parts = [_rows(path) for path in done]
        for batch, start in enumerate(range(0, self._total, self._batch_size)):
            size = min(self._batch_size, self._total - start)
            rows = list(islice(parts[batch % len(parts)], size))
            if len(rows) != size:
                raise ValueError(f"output {self.output} cannot be written: {done[batch % len(parts)]} lacks rows")
            yield from rows

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """In this block no other process begins or ends a journal of these results."""
        path = self._target.with_name(f".{self._target.name}.lock")
        while True:
            try:
                file = path.open("a")
            except OSError as error:
                raise OSError(error.errno, f"output {self.output} cannot be written: {error.strerror}") from None
            with file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not (path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino):
                    continue  # the one who had it before removed it
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return


def write_results(
    output: Path,
    rows_after: Callable[[int], Iterator[Row]],
    write: Callable[[TextIO, Iterator[Row]], object],
    watch: Callable[[Iterable[Row]], Iterator[Row]],
    journal: Journal | None,
    facts: Mapping[str, Any],
    total: int,
    batch_size: int,
) -> int | None:
    """Write a file of results; with a journal, where all processes have done their share.

    Args:
        output: the file.
        rows_after: the rows of this process after the first so many.
        write: writes rows into a file.
        watch: all rows of this process pass through it, also those that were kept before.
        journal, facts, total, batch_size: see `Journal`; without a journal, rows are written as they come.

    Returns:
        How many rows of the results have an error; None where another process has to write them, and so to say it: torchrun
        ends all processes as soon as one says that something was amiss.
    """
    failed = 0

    def write_all(rows: Iterator[Row]) -> None:
        with writing(output) as file:
            write(file, counted(rows))

    def counted(rows: Iterator[Row]) -> Iterator[Row]:
        nonlocal failed
        for row in rows:
            failed += row.error is not None
            yield row

    if journal is None:
        write_all(watch(rows_after(0)))
        return failed
    with journal.opened(facts, total, batch_size):
        for _ in watch(chain(journal.stored(), journal.keep(rows_after(journal.kept)))):
            pass
    return failed if journal.close(write_all) else None


def _as_json(row: Row) -> dict[str, Any]:
    return {**vars(row), "path": str(row.path)}


def _rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        file.readline()
        for line in file:
            value = _parsed(line)
            if value is None:
                return
            tuples = {name: tuple(value[name]) for name in ("probabilities", "beside")}
            yield Row(**{**value, **tuples, "path": Path(value["path"])})


def _parsed(line: bytes) -> dict[str, Any] | None:
    """What a whole line says; None of one that a kill cut off."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
