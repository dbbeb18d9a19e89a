"""`hifuse-fast freeze`: what it writes, the certificate that it shows, and what it refuses before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hifuse_fast.app.freeze as app
from hifuse_fast import create_model_from_checkpoint, load_optimized, optimize_for_inference, save_checkpoint
from hifuse_fast.data.images import Preprocess, load_image
from tests.support.cli import RECORD, by_hand, probabilities, save_noise

SMALL = ["--image-size", "32", "--resize", "36"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images to calibrate on, each of another brightness of noise."""
    for i in range(32):
        save_noise(tmp_path / "images" / f"{i}.png", 40, 40, i)
    return tmp_path / "images"


def test_predict_takes_the_file(run: Any, checkpoint: Path, picture: Path, tmp_path: Path) -> None:
    out, frozen = tmp_path / "out.json", tmp_path / "frozen.safetensors"
    done = run("freeze", checkpoint, frozen)
    assert (done.exit_code, done.output) == (0, f"written: {frozen}\n"), done.output
    assert run("predict", picture, "--checkpoint", frozen, "-o", out, "--image-size", 64, "--resize", 70).exit_code == 0
    torch.testing.assert_close(probabilities(out), by_hand(checkpoint, picture), rtol=0, atol=1e-6)


def test_what_a_training_said_goes_into_the_file(run: Any, checkpoint: Path, tmp_path: Path) -> None:
    trained, frozen = tmp_path / "trained.safetensors", tmp_path / "frozen.safetensors"
    save_checkpoint(create_model_from_checkpoint(checkpoint), trained, RECORD)
    assert run("freeze", trained, frozen, "--dtype", "bfloat16", "--algorithm", "direct").exit_code == 0
    network = load_optimized(frozen)
    assert network.record == json.loads(json.dumps(RECORD))
    assert (network.dtype, network.configuration.algorithm) == (torch.bfloat16, "direct")


def test_int8_is_calibrated_once_and_shows_its_certificate(
    run: Any, checkpoint: Path, picture: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a random network every image is of one class, so its head is turned to tell images apart."""
    monkeypatch.setattr("hifuse_fast.inference.calibrate._ALONE", 4)
    monkeypatch.setattr("hifuse_fast.inference.calibrate.ALLOWED", 10.0)  # random weights have no logits to keep
    trained, frozen, out = (tmp_path / name for name in ("trained.safetensors", "frozen.safetensors", "out.json"))
    model = create_model_from_checkpoint(checkpoint)
    images = torch.stack([Preprocess(32, 36)(load_image(path)) for path in sorted(folder.iterdir())])
    with torch.inference_mode():
        model.conv_head.bias.data -= model(images).median(0).values
    save_checkpoint(model, trained)
    done = run("freeze", trained, frozen, "--dtype", "int8", "--calibration", folder, "--most-changed", 32, *SMALL)
    assert done.exit_code == 0, done.output
    network = load_optimized(frozen)
    assert network.certificate is not None
    assert (network.certificate.images, network.certificate.most_changed) == (32, 32)
    assert done.stdout == f"{network.certificate}\nwritten: {frozen}\n"
    assert run("predict", picture, "--checkpoint", frozen, "-o", out, *SMALL).exit_code == 0
    assert json.loads(out.read_text())["dtype"] == "int8"


def test_bad_input_is_one_line_and_nothing_is_written(
    run: Any, checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, out = tmp_path / "frozen.safetensors", tmp_path / "out.safetensors"
    optimize_for_inference(create_model_from_checkpoint(checkpoint), backend="reference").save(frozen)
    (tmp_path / "few").mkdir()
    save_noise(tmp_path / "few" / "0.png", 40, 40, 0)
    before = sorted(tmp_path.iterdir())
    int8 = ["--dtype", "int8", "--calibration"]
    for arguments, message in (
        ((frozen, out), "is a frozen network already"),
        ((tmp_path / "absent.pth", out), "absent.pth"),
        ((checkpoint, checkpoint), "is one of the inputs"),
        ((checkpoint, tmp_path / "out.pt"), "output must end in .safetensors"),
        ((checkpoint, tmp_path / "nowhere" / "out.safetensors"), "cannot be written: No such file or directory"),
        ((checkpoint, folder.parent), "output must end in .safetensors"),
        ((checkpoint, out, "--dtype", "int8"), "calibration must be given with dtype int8 and with no other, got dtype int8"),
        ((checkpoint, out, "--calibration", folder), "calibration must be given with dtype int8"),
        ((checkpoint, out, "--most-changed", 1), "most_changed is for dtype int8, got dtype float32"),
        ((checkpoint, out, *int8, tmp_path / "absent"), "absent"),
        ((checkpoint, out, *int8, tmp_path / "few", *SMALL), "calibration must have 32 images or more, got 1"),
        ((checkpoint, out, "--device", "cuda:99"), "device cuda:99 is not there"),
    ):
        done = run("freeze", *arguments)
        assert done.exit_code == 2, done.output
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert sorted(tmp_path.iterdir()) == before
    # The output is looked at before the images, and before minutes of calibration.
    monkeypatch.setattr(app, "read_model", lambda *_, **__: pytest.fail("the checkpoint was read"))
    assert run("freeze", checkpoint, tmp_path / "nowhere" / "a.safetensors", *int8, folder).exit_code == 2
