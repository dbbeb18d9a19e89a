"""cli.py as users meet it: a process with arguments, files, streams and an exit code. Refusals are tested without a process."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hifuse_fast
from hifuse_fast.checkpoints import create_model_from_checkpoint, load_checkpoint
from hifuse_fast.data.images import Preprocess, load_image
from tests.support.cli import CLASSES, ENVIRONMENT, SMALL, by_hand, hifuse, read_csv, save_noise

INTERRUPTIBLE = (  # also where the shell that started the tests ignores SIGINT
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from hifuse_fast.cli import main; main()"
)  # fmt: skip


def test_a_folder_as_it_is_found_in_the_world(tmp_path, checkpoint, classes):
    folder = tmp_path / "a folder"
    good = [
        save_noise(folder / "1 with space.png", 80, 64, 1),
        save_noise(folder / "2 größe 図.tif", 64, 97, 2),
        save_noise(folder / "sub" / "3.bmp", 31, 200, 3),
    ]
    (folder / "corrupt.jpg").write_bytes(save_noise(tmp_path / "whole.jpg", 64, 64, 4).read_bytes()[:900])
    (folder / "text.png").write_text("this is not an image")
    bomb = bytearray(good[0].read_bytes())
    bomb[16:24] = (60000).to_bytes(4) * 2  # width and height in the header, and its checksum
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4)
    (folder / "bomb.png").write_bytes(bomb)
    (folder / "notes.txt").write_text("not even named like one")
    os.rename(good[2], odd := folder / "sub" / os.fsdecode(b"\xff\n.bmp"))
    out = tmp_path / "out.csv"

    done = hifuse("predict", folder, "--checkpoint", checkpoint, "--classes", classes, "-o", out, "--batch-size", 2, *SMALL)

    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert [Path(line.split(": ")[0]).name for line in lines[:-2]] == ["bomb.png", "corrupt.jpg", "text.png"]
    assert lines[-2] == "1 file was not read: 1 .txt."
    assert lines[-1] == "3 of 6 images could not be used; the results of the others are complete."
    rows = {row["path"]: row for row in read_csv(out)}
    assert list(rows) == sorted(rows)
    for name, reason in (
        ("bomb.png", "60000 x 60000 pixels are more than"),
        ("corrupt.jpg", "truncated"),
        ("text.png", "not an image"),
    ):
        row = rows.pop(str(folder / name))
        assert reason in row["error"]
        assert row["class"] == row["probability"] == row["p(malignant)"] == ""
    assert set(rows) == {str(good[0]), str(good[1]), str(odd)}
    for path, row in rows.items():
        expected = by_hand(checkpoint, Path(path))
        written = torch.tensor([float(row[f"p({name})"]) for name in CLASSES])
        torch.testing.assert_close(written, expected, rtol=0, atol=1e-6)
        assert row["class"] == CLASSES[int(expected.argmax())]
        assert float(row["probability"]) == written.max()
        assert row["error"] == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a folder", "out.csv", "whole.jpg"]  # no temporary file


def test_interrupt_leaves_nothing_half_written(tmp_path, checkpoint):
    folder = tmp_path / "many"
    first = save_noise(folder / "0.png", 1500, 1500, 0)
    for index in range(1, 1000):  # a minute or more of decoding
        os.link(first, folder / f"{index}.png")
    out = tmp_path / "out.csv"
    out.write_text("the old results")
    arguments = ["predict", folder, "--checkpoint", checkpoint, "-o", out, "--workers", 1, "--batch-size", 1, *SMALL]
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *map(str, arguments)], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    deadline = time.monotonic() + 60
    kept = tmp_path / "out.csv.partial"
    while not kept.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)  # into the images
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # an impatient user
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert out.read_text() == "the old results"
    if kept.exists():
        rows = [json.loads(line) for line in kept.read_text().splitlines()][1:]
        assert errors == f"Interrupted: {len(rows)} of 1000 rows are kept in {kept}, and --resume goes on after them.\n"
        assert all(row["error"] is None for row in rows)
    else:
        assert errors == "Interrupted: nothing was written.\n"
    assert {path.name for path in tmp_path.iterdir()} - {kept.name} == {"many", "out.csv"}


def test_refusal_is_one_line_and_2_also_as_a_process(tmp_path):
    done = hifuse("predict", save_noise(tmp_path / "x.png", 8, 8, 0), "--checkpoint", tmp_path / "absent.pth")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"Error: checkpoint {tmp_path / 'absent.pth'}: no such file\n"


# ---- without a process


def test_json_says_how_it_was_made(run, tmp_path, checkpoint, classes):
    path = save_noise(tmp_path / "x.png", 64, 64, 0)
    out = tmp_path / "out.json"
    options = [
        "--dtype",
        "bfloat16",
        "--backend",
        "reference",
        "--channel-gate",
        "double_sigmoid",
        "--mean",
        "0.4",
        "0.5",
        "0.6",
    ]
    weights, checkpoint = load_checkpoint(checkpoint), tmp_path / "official.pth"  # which says nothing of its gate
    torch.save(weights, checkpoint)
    result = run("predict", path, path, "--checkpoint", checkpoint, "--classes", classes, "--output", out, *options, *SMALL)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    written = json.loads(out.read_text())
    assert written["hifuse_fast"] == hifuse_fast.__version__
    assert written["checkpoint"] == str(checkpoint)
    assert written["model"]["dims"] == [16, 32, 64, 128]
    assert written["model"]["channel_gate"] == "double_sigmoid"
    assert written["preprocess"] == {
        "image_size": 64, "resize": 70, "mean": [0.4, 0.5, 0.6], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear",
    }  # fmt: skip
    assert (written["dtype"], written["backend"], written["classes"]) == ("bfloat16", "reference", CLASSES)
    (image,) = written["images"]  # the file was given twice and is one image
    assert (image["path"], image["error"]) == (str(path), None)

    model = create_model_from_checkpoint(checkpoint, "double_sigmoid", dtype=torch.bfloat16)
    pixels = Preprocess(64, 70, mean=(0.4, 0.5, 0.6))(load_image(path))[None].bfloat16()
    with torch.inference_mode(), hifuse_fast.use_backend("reference"):
        expected = model(pixels).float().softmax(-1)[0]
    torch.testing.assert_close(torch.tensor(image["probabilities"]), expected, rtol=0, atol=2e-3)
    assert image["class"] == CLASSES[int(expected.argmax())]


def test_csv_on_stdout_and_the_official_checkpoint_form(run, tmp_path, checkpoint, monkeypatch):
    path = save_noise(tmp_path / "x.png", 64, 64, 0)
    torch.save(create_model_from_checkpoint(checkpoint).state_dict(), tmp_path / "best_model.pth")
    monkeypatch.chdir(tmp_path)
    result = run("predict", "x.png", "--checkpoint", "best_model.pth", *SMALL)
    assert (result.exit_code, result.stderr) == (0, "")
    (row,) = csv.DictReader(result.stdout.splitlines())
    assert row["path"] == "x.png"
    expected = by_hand(checkpoint, path)
    torch.testing.assert_close(torch.tensor([float(row[f"p({i})"]) for i in range(3)]), expected, rtol=0, atol=1e-6)
    assert row["class"] == str(int(expected.argmax()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [  # added to good arguments; {} is the folder
        ("--classes {}/two.txt", "2 names, but the checkpoint has 3 classes"),
        ("--classes {}/no.txt", "no.txt"),
        ("--checkpoint {}/noise.pth", "noise.pth"),
        ("--checkpoint {}/other.pth", "other.pth: not a HiFuse checkpoint"),
        ("--model hifuse_base", "is no hifuse_base: its dims are (16, 32, 64, 128)"),
        ("-o {}/no/out.csv", "out.csv cannot be written: No such file or directory"),
        ("-o {} --format csv", "is not a regular file"),
        ("-o {}/out.xlsx", "output must end in .csv or .json"),
        ("--device gpu", "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("--device cuda:99", "device cuda:99 is not there"),
        ("--device cuda:256", "device cuda:256 is not there"),  # torch takes it for cuda:0
        ("--device mps", "device must be auto, cpu, cuda or cuda:N, got 'mps'"),
        ("--device xpu", "device must be auto, cpu, cuda or cuda:N, got 'xpu'"),
        ("--csv-safe --format json", "--csv-safe and --csv-bom are for CSV"),
        ("--csv-bom -o {}/out.json", "--csv-safe and --csv-bom are for CSV"),
        ("--std 0 1 1", "std must be positive"),
        (
            "--mean 123.675 116.28 103.53",
            "mean must be on the scale [0, 1], got (123.675, 116.28, 103.53); values on the scale",
        ),
        ("--std 58.395 57.12 57.375", "std must be on the scale [0, 1], got (58.395, 57.12, 57.375); values on the scale"),
        ("--bits 7", "Invalid value for '--bits'"),
        ("--batch-size 0", "Invalid value for '--batch-size'"),
        ("--backend fastest", "Invalid value for '--backend'"),
        ("{}/no.png", "no.png: no such file or folder"),
    ],
)
def test_refusals(run, picture, checkpoint, arguments, message):
    tmp_path = picture.parent
    (tmp_path / "two.txt").write_text("a\nb\n")
    (tmp_path / "noise.pth").write_bytes(b"\x00\x01noise" * 100)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    before = sorted(tmp_path.iterdir())
    added = [argument.format(tmp_path) for argument in arguments.split()]
    result = run("predict", picture, "--checkpoint", checkpoint, *SMALL, *added)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert sorted(tmp_path.iterdir()) == before  # nothing was left behind


def test_folder_without_images(run, tmp_path, checkpoint):
    result = run("predict", tmp_path, "--checkpoint", checkpoint)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: no images in {tmp_path}: looked for .bmp ")
    (tmp_path / "scan.nii").touch()
    result = run("predict", tmp_path, "--checkpoint", checkpoint)
    assert result.stderr.endswith(" .webp; 1 file was not read: 1 .nii\n")


def test_backend_that_cannot_serve_is_named(run, picture, checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(hifuse_fast.backends.select, "_unavailable", lambda backend: "it was taken away")
    out = tmp_path / "out.csv"
    result = run("predict", picture, "--checkpoint", checkpoint, "--backend", "triton", "-o", out, *SMALL)
    assert result.exit_code == 2
    assert "backend 'triton' cannot serve layer_norm: it was taken away" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize("name", ["x.png", "link.png", "tiny.safetensors", "names.txt"])
def test_results_do_not_replace_what_they_are_made_of(run, picture, checkpoint, name):
    folder = picture.parent
    weights, names = folder / "tiny.safetensors", folder / "names.txt"
    shutil.copy(checkpoint, weights)
    names.write_text("a\nb\nc\n")
    (folder / "link.png").symlink_to(picture)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    arguments = ["--checkpoint", weights, "--classes", names, "-o", folder / name, "--format", "csv", *SMALL]
    result = run("predict", picture, *arguments)
    assert result.exit_code == 2
    assert f"output {folder / name} is one of the inputs" in result.stderr
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(("options", "as_json"), [([], False), (["--format", "json"], True)])
def test_a_dash_is_stdout(run, picture, checkpoint, monkeypatch, options, as_json):
    monkeypatch.chdir(picture.parent)
    result = run("predict", picture.name, "--checkpoint", checkpoint, "-o", "-", *options, "--backend", "reference", *SMALL)
    assert (result.exit_code, result.stderr) == (0, "")
    rows = json.loads(result.stdout)["images"] if as_json else list(csv.DictReader(result.stdout.splitlines()))
    assert [row["path"] for row in rows] == ["x.png"]
    assert list(picture.parent.iterdir()) == [picture]


def test_csv_for_a_spreadsheet(run, picture, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture.rename("@sum.png")
    (tmp_path / "names.txt").write_text("2 =bird\n0 -cat\n1 +dog\n")
    options = ["--csv-safe", "--csv-bom", "--classes", "names.txt", "-o", "out.csv", "--backend", "reference"]
    assert run("predict", "@sum.png", "--checkpoint", checkpoint, *options, *SMALL).exit_code == 0
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8-sig") as file:
        (row,) = csv.DictReader(file)
    assert list(row)[4:] == ["p(-cat)", "p(+dog)", "p(=bird)"]
    assert row["path"] == "'@sum.png"
    assert row["class"] in ("'-cat", "'+dog", "'=bird")


def test_pixel_limit(run, tmp_path, picture, checkpoint):
    result = run("predict", picture, "--checkpoint", checkpoint, "--max-pixels", 4095, *SMALL)
    assert result.exit_code == 1
    assert f"{picture}: 64 x 64 pixels are more than the limit of 4095" in result.stderr
    assert run("predict", picture, "--checkpoint", checkpoint, "--max-pixels", 4096, *SMALL).exit_code == 0


def test_pixel_limit_can_be_lifted_over_pillows_own(run, picture, checkpoint, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert run("predict", picture, "--checkpoint", checkpoint, *SMALL).exit_code == 0
    result = run("predict", picture, "--checkpoint", checkpoint, "--max-pixels", 10, *SMALL)
    assert f"{picture}: 64 x 64 pixels are more than the limit of 10" in result.stderr  # the limit that was given


def test_what_was_not_read_is_said_at_the_end(run, tmp_path, checkpoint):
    pages = [Image.new("L", (64, 64), shade) for shade in (0, 90)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    Image.fromarray(np.full((64, 64), 3000, dtype=np.uint16)).save(tmp_path / "dim.png")
    for name in ("1.nii", "2.nii", "IM0001", ".Trash-1000/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    result = run("predict", tmp_path, "--checkpoint", checkpoint, *SMALL)
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        f"{tmp_path / 'dim.png'}: its 16-bit values are at most 3000, so it is nearly of one shade. If its data have 12 bits, "
        "give --bits 12. (This is said once a run.)",
        f"Only the first page was read of 1 file: {tmp_path / 'pages.tif'} (first of 2 pages).",
        "3 files were not read: 2 .nii, 1 without a suffix.",
    ]
    result = run("predict", tmp_path / "dim.png", "--checkpoint", checkpoint, "--bits", 12, *SMALL)
    assert (result.exit_code, result.stderr) == (0, "")


def test_decoding_options_change_the_pixels_and_are_on_record(run, tmp_path, checkpoint):
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.random.default_rng(0).integers(0, 4096, (64, 80), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.tif", exif=exif)
    out = tmp_path / "out.json"
    options = ["--bits", 12, "--exif-orientation"]
    assert run("predict", tmp_path / "x.tif", "--checkpoint", checkpoint, "-o", out, *options, *SMALL).exit_code == 0
    written = json.loads(out.read_text())
    assert (written["bits"], written["exif_orientation"]) == (12, True)
    shown = np.rot90((values >> 4).astype(np.uint8), 3)
    Image.fromarray(shown).save(tmp_path / "shown.png")
    expected = by_hand(checkpoint, tmp_path / "shown.png")
    torch.testing.assert_close(torch.tensor(written["images"][0]["probabilities"]), expected, rtol=0, atol=1e-6)


def test_dicom_is_read_and_its_window_is_on_record(run, tmp_path, checkpoint):
    pytest.importorskip("pydicom")
    from tests.support.dicom import save_dicom

    units = np.random.default_rng(0).integers(-1024, 3000, (64, 80)).astype(np.int16)
    tags = {"RescaleSlope": 1, "RescaleIntercept": 0}
    save_dicom(tmp_path / "scans" / "IM0001", units, **tags, WindowCenter=40, WindowWidth=400)
    save_dicom(tmp_path / "scans" / "none.dcm", units, **tags)
    out = tmp_path / "out.json"
    command = ["predict", tmp_path / "scans", "--checkpoint", checkpoint, "-o", out, *SMALL]
    result = run(*command)
    assert result.exit_code == 1
    assert "none.dcm: its signed samples have no known black and white" in result.stderr
    written = json.loads(out.read_text())
    assert written["window"] is None
    assert [image["error"] is None for image in written["images"]] == [True, False]
    for window in ((40, 400), (-600, 1500)):
        assert run(*command, "--window", *window).exit_code == 0
        written = json.loads(out.read_text())
        assert written["window"] == list(window)
        shown = ((units - (window[0] - 0.5)) / (window[1] - 1) + 0.5) * 255
        Image.fromarray(np.rint(np.clip(shown, 0, 255)).astype(np.uint8)).save(tmp_path / "shown.png")
        expected = by_hand(checkpoint, tmp_path / "shown.png")
        for image in written["images"]:
            torch.testing.assert_close(torch.tensor(image["probabilities"]), expected, rtol=0, atol=1e-6)
    refused = run(*command, "--window", 40, 0)
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
    assert "window must be a finite centre and a width of at least 1, got 40.0 0.0" in refused.stderr


def test_a_named_file_that_cannot_be_read_has_a_row(run, picture, checkpoint):
    os.symlink("nowhere.png", broken := picture.parent / "broken.png")
    result = run("predict", broken, picture, "--checkpoint", checkpoint, *SMALL)
    assert result.exit_code == 1
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert [row["error"] for row in rows] == ["cannot be opened: No such file or directory", ""]
    assert result.stderr.endswith("1 of 2 images could not be used; the results of the others are complete.\n")


def test_resize_follows_the_image_size(run, tmp_path, picture, checkpoint):
    out = tmp_path / "out.json"
    assert run("predict", picture, "--checkpoint", checkpoint, "--image-size", 96, "-o", out).exit_code == 0
    assert json.loads(out.read_text())["preprocess"]["resize"] == 110  # 96 * 256 / 224 = 109.7


def test_info(run):
    assert json.loads(run("info", "--json").output)["version"] == hifuse_fast.__version__
    assert run("info").output.strip() == str(hifuse_fast.info())
    assert hifuse_fast.__version__ in run("--version").output


@pytest.mark.parametrize("code", [0, 1])
def test_bench_passes_its_options_and_the_exit_code(run, tmp_path, monkeypatch, code):
    calls = []
    monkeypatch.setattr("hifuse_fast.bench.network.run", lambda *args, **options: calls.append((args, options)) or code)
    options = ["--batch-size", 2, "--batch-size", 4, "--dtype", "float32", "--seconds", 3, "--images", tmp_path, "--threads", 1]
    result = run("bench", "--model", "hifuse_tiny", "--results", tmp_path, *options)
    assert result.exit_code == code, result.output
    expected = {
        "results": tmp_path, "images": tmp_path, "batch_sizes": (2, 4), "dtypes": ("float32",), "devices": None, "threads": 1,
        "budget_s": 3.0,
    }  # fmt: skip
    assert calls == [(("hifuse_tiny",), expected)]


def test_bench_writes_only_where_it_is_told(run, tmp_path, monkeypatch):
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hifuse_fast.bench.network.run", lambda *_, **options: calls.append(options["results"]) or 0)
    assert run("bench").exit_code == 0
    assert calls == [None]
    assert not list(tmp_path.iterdir())
