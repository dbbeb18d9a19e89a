"""`hifuse-fast export`: what it hands to to_onnx, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import hifuse_fast.app.export as app
from hifuse_fast import create_model_from_checkpoint, optimize_for_inference, save_checkpoint
from hifuse_fast.data.images import Preprocess
from tests.support.cli import CLASSES, RECORD


def test_the_command_hands_over_network_classes_and_preprocessing(
    run: Any, checkpoint: Path, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(app, "to_onnx", lambda model, path, **options: calls.append((model, path, options)) or "written")
    out = tmp_path / "a.onnx"
    done = run(
        "export", checkpoint, out, "--classes", classes, "--image-size", 64, "--dynamic", "batch", "--dynamic", "size",
        "--mean", 0.1, 0.2, 0.3,
    )  # fmt: skip
    assert (done.exit_code, done.output) == (0, "written\n"), done.output
    [(model, path, options)] = calls
    assert path == out
    assert not model.training
    assert options == {
        "image_size": 64, "batch_size": 1, "dynamic": ("batch", "size"), "classes": CLASSES,
        "preprocess": Preprocess(64, 73, (0.1, 0.2, 0.3)), "reading": {"bits": 16, "exif_orientation": False, "window": None},
    }  # fmt: skip


def test_bad_input_is_one_line(run: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = tmp_path / "frozen.safetensors"
    optimize_for_inference(create_model_from_checkpoint(checkpoint), backend="reference").save(frozen)

    def absent(*_: Any, **__: Any) -> None:
        raise ImportError("pip install onnx onnxscript")

    for arguments, message in (
        ((checkpoint, tmp_path / "a.pt"), "path must end in .onnx"),
        ((frozen, tmp_path / "a.onnx"), "is a frozen network"),
        ((tmp_path / "absent.pth", tmp_path / "a.onnx"), "absent.pth"),
        ((checkpoint, checkpoint), "is one of the inputs"),
    ):
        done = run("export", *arguments)
        assert done.exit_code == 2
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    monkeypatch.setattr(app, "to_onnx", absent)
    done = run("export", checkpoint, tmp_path / "a.onnx")
    assert (done.exit_code, done.stderr) == (2, "Error: pip install onnx onnxscript\n")


def test_what_a_training_said_goes_into_the_file(
    run: Any, checkpoint: Path, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(app, "to_onnx", lambda _, __, **options: calls.append(options) or "written")
    trained = tmp_path / "trained.safetensors"
    save_checkpoint(create_model_from_checkpoint(checkpoint), trained, RECORD)
    for options in ([], ["--classes", classes, "--image-size", 96, "--std", 0.1, 0.2, 0.3]):
        assert run("export", trained, tmp_path / "a.onnx", *options).exit_code == 0
    trained_as = {name: RECORD["images"].get(name) for name in ("bits", "exif_orientation", "window")}
    assert [each["reading"] for each in calls] == [trained_as, trained_as]
    assert [(each["image_size"], each["classes"], each["preprocess"]) for each in calls] == [
        (64, RECORD["classes"], Preprocess(64, 70, (0.2, 0.3, 0.4))),
        (96, CLASSES, Preprocess(96, 110, (0.2, 0.3, 0.4), (0.1, 0.2, 0.3))),
    ]
