"""The journal of `predict`: a run that is killed and resumed, or shared, gives the bytes of one that nothing disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hifuse_fast import save_checkpoint
from hifuse_fast.checkpoints import create_model_from_checkpoint
from tests.support.cli import SMALL, read_csv, save_noise
from tests.support.training import finish, start


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
