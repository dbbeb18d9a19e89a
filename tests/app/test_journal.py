"""journal.py: whatever is killed and resumed, or shared, the results are those of one run that nothing disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hifuse_fast import save_checkpoint
from hifuse_fast.app.journal import Journal, write_results
from hifuse_fast.app.output import Row
from hifuse_fast.app.share import Share
from hifuse_fast.checkpoints import create_model_from_checkpoint
from tests.support.cli import SMALL, read_csv, save_noise
from tests.support.training import finish, start

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


# ---- the command


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for index in range(30):
        save_noise(folder / f"{index:02}.png", 64 + index % 3, 70, index)
    (folder / "07.png").write_text("no image")
    pages = [Image.new("L", (64, 64), shade) for shade in (0, 90)]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    return folder


def arguments(scans: Path, checkpoint: Path, out: Path, *more: Any) -> list[Any]:
    return ["predict", scans, "--checkpoint", checkpoint, "-o", out, "--batch-size", 4, "--workers", 1, *SMALL, *more]


@pytest.fixture(scope="module")
def undisturbed(scans: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    """What a run comes to that nothing disturbs, and how long it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(start(["predict", "--help"], folder / "help"))  # the server has started
    begun = time.monotonic()
    process = start(arguments(scans, checkpoint, folder / "out.csv"), folder / "errors")
    assert finish(process) == 1, (folder / "errors").read_text()
    return (folder / "out.csv").read_bytes(), time.monotonic() - begun


def kill_and_resume(
    folder: Path,
    scans: Path,
    checkpoint: Path,
    undisturbed: tuple[bytes, float],
    kills: int,
    environments: list[dict[str, str]],
) -> None:
    expected, seconds = undisturbed
    draw = random.Random(seed := time.time_ns())
    out, left = folder / "out.csv", kills
    for _ in range(60):
        processes = [
            start(arguments(scans, checkpoint, out, "--resume"), folder / f"errors-{i}", None, environment)
            for i, environment in enumerate(environments)
        ]
        if left:
            time.sleep(draw.uniform(0, seconds))
            for process in processes:
                process.kill()
            left -= 1
        codes = [finish(process) for process in processes]
        if results(folder) == ["out.csv"]:  # a kill may also come once they are written, before the rows are removed
            break
        assert left or -signal.SIGKILL in codes or set(codes) <= {0, 1}, (folder / "errors-0").read_text()
    assert out.read_bytes() == expected, f"seed {seed}"
    assert results(folder) == ["out.csv"]


def results(folder: Path) -> list[str]:
    """What a run has left in its folder."""
    return [name for name in names(folder) if not name.startswith((".", "errors"))]


def test_killed_at_random_moments(tmp_path: Path, scans: Path, checkpoint: Path, undisturbed: tuple[bytes, float]) -> None:
    kill_and_resume(tmp_path, scans, checkpoint, undisturbed, 3, [{}])
    [said] = [line for line in (tmp_path / "errors-0").read_text().splitlines() if "Only the first page" in line][-1:]
    assert said.endswith("pages.tif (first of 2 pages).")


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("repetition", range(7))
def test_killed_at_many_random_moments(
    tmp_path: Path, scans: Path, checkpoint: Path, undisturbed: tuple[bytes, float], world: int, repetition: int
) -> None:
    environments = [{"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)} for rank in range(world)]
    kill_and_resume(tmp_path, scans, checkpoint, undisturbed, 3, environments)


@pytest.mark.parametrize("row", [pytest.param(1, marks=pytest.mark.slow), 6])
def test_killed_within_the_writing_of_a_row(
    tmp_path: Path, scans: Path, checkpoint: Path, undisturbed: tuple[bytes, float], row: int
) -> None:
    out = tmp_path / "out.csv"
    process = start(arguments(scans, checkpoint, out), tmp_path / "errors", ("killed in a row", row))
    assert finish(process) == -signal.SIGKILL
    lines = (tmp_path / "out.csv.partial").read_bytes().split(b"\n")
    assert len(lines) == 1 + row
    assert lines[-1]  # half a row
    process = start(arguments(scans, checkpoint, out, "--resume"), tmp_path / "errors")
    assert finish(process) == 1, (tmp_path / "errors").read_text()
    assert out.read_bytes() == undisturbed[0]


ENDS = [
    ("killed after a rename", 1),
    ("killed before a rename", 1),
    ("killed before a rename", 2),
    ("killed after a rename", 2),
]


@pytest.mark.parametrize("fault", [ENDS[0], *(pytest.param(end, marks=pytest.mark.slow) for end in ENDS[1:])], ids=str)
def test_killed_while_the_results_are_written(
    tmp_path: Path, scans: Path, checkpoint: Path, undisturbed: tuple[bytes, float], fault: tuple[str, int]
) -> None:
    out = tmp_path / "out.csv"
    assert finish(start(arguments(scans, checkpoint, out), tmp_path / "errors", fault)) == -signal.SIGKILL
    assert finish(start(arguments(scans, checkpoint, out, "--resume"), tmp_path / "errors")) == 1
    assert out.read_bytes() == undisturbed[0]


def test_shares_come_together(
    run: Any, tmp_path: Path, scans: Path, checkpoint: Path, undisturbed: tuple[bytes, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, others = tmp_path / "out.csv", []
    for rank in (1, 2, 0):
        assert not out.exists()
        for name, value in (("RANK", rank), ("WORLD_SIZE", 3), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, str(value))
        result = run(*arguments(scans, checkpoint, out))
        assert ("07.png: not an image" in result.stderr) == (rank == 1)
        assert (f"The share {rank}-of-3 is done" in result.stderr) == (rank != 0)
        assert ("1 of 31 images could not be used" in result.stderr) == (rank == 0)
        others.append(result.exit_code)
    assert out.read_bytes() == undisturbed[0]
    assert others == [0, 0, 1]  # 07.png is of the share of 1; torchrun would end the others if that said so
    assert names(tmp_path) == ["out.csv"]
    result = run("predict", scans, "--checkpoint", checkpoint, *SMALL)
    assert (result.exit_code, result.stderr) == (2, "Error: output must be a file for several processes, got -\n")


def test_what_differs_is_named(
    run: Any, tmp_path: Path, scans: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    process = start(arguments(scans, checkpoint, out), tmp_path / "errors", ("killed in a row", 6))
    assert finish(process) == -signal.SIGKILL
    other = tmp_path / "other.safetensors"
    model = create_model_from_checkpoint(checkpoint)
    model.conv_head.bias.data += 1
    save_checkpoint(model, other)
    os.utime(scans / "00.png", ns=(1, 1))
    for more, named in (
        (["--checkpoint", other], ["checkpoint was", "checkpoint_sha256 was"]),
        (["--batch-size", 5, "--dtype", "bfloat16"], ["batch_size was 4 and is 5", "dtype was 'float32' and is 'bfloat16'"]),
        (["--window", 40, 400], ["window was None and is [40.0, 400.0]"]),
        ([scans / "00.png", tmp_path / "errors"], ["images was '31 files", "and is '32 files", "total was 31 and is 32"]),
        ([], ["images was '31 files", "and is '31 files"]),
    ):
        result = run(*arguments(scans, checkpoint, out, "--resume", *more))
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
        for text in named:
            assert text in result.stderr
    assert not out.exists()
    result = run("predict", scans, "--checkpoint", checkpoint, "--resume", *SMALL)
    assert result.stderr == "Error: output must be a file for --resume, got -\n"


def test_gradcam_of_each_image(run: Any, tmp_path: Path, scans: Path, checkpoint: Path) -> None:
    out, folder = tmp_path / "out.json", tmp_path / "cams" / "here"
    few = [scans / name for name in ("05.png", "06.png", "07.png")]
    command = ["predict", *few, "--checkpoint", checkpoint, "-o", out, "--gradcam", folder, *SMALL]
    assert run(*command).exit_code == 1
    images = json.loads(out.read_text())["images"]
    assert [image["gradcam"] for image in images] == [str(folder / "0-05.png"), str(folder / "1-06.png"), ""]
    assert names(folder) == ["0-05.png", "1-06.png"]
    with Image.open(folder / "0-05.png") as picture:
        assert picture.size == (64, 64)
    refused = run("predict", scans, "--checkpoint", checkpoint, "--gradcam", scans / "cams", *SMALL)
    assert refused.stderr == f"Error: gradcam must not lie in {scans}, whose images are read; got {scans / 'cams'}\n"
    assert not (scans / "cams").exists()
    refused = run(*command)
    assert refused.exit_code == 2
    assert f"gradcam {folder} must be a folder without overlays, but {folder / '0-05.png'} is there" in refused.stderr
    assert run(*command[:-5], folder.parent / "other", *SMALL, "-o", tmp_path / "out.csv").exit_code == 1
    assert [row["gradcam"][-9:] for row in read_csv(tmp_path / "out.csv")] == ["/0-05.png", "/1-06.png", ""]
    frozen = tmp_path / "frozen.safetensors"
    import hifuse_fast

    hifuse_fast.optimize_for_inference(create_model_from_checkpoint(checkpoint), backend="reference").save(frozen)
    refused = run("predict", *few, "--checkpoint", frozen, "--gradcam", tmp_path / "none", *SMALL)
    assert refused.exit_code == 2
    assert f"gradcam needs gradients, and the frozen network {frozen} has none" in refused.stderr
    assert not (tmp_path / "none").exists()
