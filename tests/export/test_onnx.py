"""to_onnx: the file, its metadata, its check, and what it refuses; runtimes where they are installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hifuse_fast import create_model
from hifuse_fast.data.images import Preprocess
from hifuse_fast.export import OPSET, onnx, to_onnx
from tests.support.frozen import image, make, run

SMALL: dict[str, Any] = {"depths": (1, 2, 1, 1), "conv_depths": (1, 1, 1, 1)}
CLASSES = ["benign", "böse", "unsure", "d", "e"]


def in_runtime(path: Path, x: Tensor) -> list[Tensor]:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(out) for out in session.run(None, {"images": x.numpy()})]


@pytest.mark.slow
def test_a_dynamic_batch_and_the_metadata(tmp_path: Path) -> None:
    package = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model, path = make(torch.float32, in_chans=3, **SMALL), tmp_path / "a.onnx"
    path.write_text("old")
    preprocess = Preprocess(64, 80, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    with torch.autocast("cpu", torch.bfloat16):  # of the caller
        done = to_onnx(
            model,
            path,
            image_size=64,
            dynamic=["batch"],
            classes=CLASSES,
            preprocess=preprocess,
            reading={"window": (40.0, 400.0)},
        )
    file = package.load(path)
    assert {node.domain for node in file.graph.node} == {""}
    assert [(each.domain, each.version) for each in file.opset_import] == [("", OPSET)]
    assert str(Path(__file__).parents[2]) not in str(file)
    metadata = {each.key: each.value for each in file.metadata_props}
    assert json.loads(metadata["classes"]) == CLASSES
    assert json.loads(metadata["reading"]) == {"window": [40.0, 400.0]}
    assert json.loads(metadata["options"]) == model.options.to_dict()
    assert json.loads(metadata["preprocess"]) == {
        "image_size": 64, "resize": 80, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear",
        "color": "RGB",
    }  # fmt: skip
    assert (done.path, done.opset, done.dynamic, done.outputs) == (path, OPSET, ("batch",), ("logits",))
    assert [each.name for each in tmp_path.iterdir()] == ["a.onnx"]
    pytest.importorskip("onnxruntime")
    assert done.error is not None
    assert done.error < 1e-5
    for batch in (0, 1, 5):
        x = torch.rand(batch, 3, 64, 64)
        torch.testing.assert_close(in_runtime(path, x)[0], run(model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_dynamic_size(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model, path = make(torch.float32, **SMALL), tmp_path / "a.onnx"
    done = to_onnx(model, path, dynamic=True)
    assert len(done.checked) == 3
    for shape in [(1, 1, 1), (2, 32, 32), (3, 33, 57), (1, 224, 96), (0, 64, 64)]:
        x = image(*shape, torch.float32)
        torch.testing.assert_close(in_runtime(path, x)[0], run(model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_rectangle_that_is_padded_and_maps_of_a_backbone(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model, path = make(torch.float32, features_only=True, out_indices=(3, 1), **SMALL), tmp_path / "a.onnx"
    done = to_onnx(model, path, image_size=(40, 70), batch_size=2)
    assert done.outputs == ("stage4", "stage2")
    x = image(2, 40, 70, torch.float32)
    for actual, expected in zip(in_runtime(path, x), run(model, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


class Proto:
    """Stands for the exporter's program, which takes seconds to make."""

    def __getattr__(self, name: str) -> Any:
        return self


@pytest.fixture
def no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "_check_packages", lambda: None)
    monkeypatch.setattr(onnx, "_trace", lambda *_: Proto())
    monkeypatch.setattr(onnx, "_bytes", lambda *_: b"graph")
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(onnx, "_largest_error", lambda *_: ("runtime 1", 1e-7))


def test_a_file_that_fails_its_check_is_not_written(no_trace: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> Any:
        raise RuntimeError("the graph is wrong")

    path = tmp_path / "a.onnx"
    path.write_text("old")
    monkeypatch.setattr(onnx, "_largest_error", wrong)
    with pytest.raises(RuntimeError, match="the graph is wrong"):
        to_onnx(make(torch.float32), path)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1
    assert to_onnx(make(torch.float32), path, check=False).error is None
    assert path.read_text() == "graph"


def test_the_result_says_how_it_was_checked(no_trace: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.onnx"
    done = str(to_onnx(make(torch.float32), path, dynamic=("size", "batch")))
    assert "opset 18, dynamic batch and size; largest error 1.0e-07 of the largest value in runtime 1, on 1x224x224," in done
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: None)
    assert str(to_onnx(make(torch.float32), path)).endswith(
        "fixed shapes; not checked in ONNX Runtime: pip install onnxruntime"
    )


def test_the_error_is_the_largest_over_the_outputs_and_nan_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = make(torch.float32), image(1, 32, 32, torch.float32)
    expected = run(model, x)
    assert onnx._error(model, lambda x: [expected + 0.25 * expected.abs().max()], x) == pytest.approx(0.25, rel=1e-5)
    assert onnx._error(model, lambda x: [expected * float("nan")], x) != 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"path": "a.pt"}, ValueError, r"path must end in .onnx, got a.pt"),
        ({"path": None}, ValueError, r"path must end in .onnx, got None"),
        ({"image_size": 0}, ValueError, "image_size must be at least 1"),
        ({"image_size": (32,)}, ValueError, "image_size must be 2 integers"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"dynamic": "batch"}, TypeError, "dynamic must be True, False or a sequence"),
        ({"dynamic": ["height"]}, ValueError, "dynamic must be one of batch, size"),
        ({"classes": ["a"]}, ValueError, "classes must be 5 names"),
        ({"classes": list("aabcd")}, ValueError, "classes must be 5 names"),
        ({"classes": "abcde"}, TypeError, "classes must be a sequence of names"),
        ({"preprocess": {"mean": 0}}, TypeError, "preprocess must be a hifuse_fast.data.images.Preprocess"),
        ({"preprocess": Preprocess(32)}, ValueError, r"preprocess must give images of image_size = \(224, 224\)"),
        ({"preprocess": Preprocess()}, ValueError, "in_chans = 2"),
        ({"check": 1}, TypeError, "check must be True or False"),
    ],
)
def test_arguments_that_do_not_fit(
    no_trace: None, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        to_onnx(make(torch.float32), **{"path": tmp_path / "a.onnx", **options})
    assert not list(tmp_path.iterdir())


def test_weights_that_no_file_can_hold(no_trace: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(TypeError, match=r"must be in torch.float32, got torch.bfloat16 in .*: call model.float\(\)"):
        to_onnx(make(torch.bfloat16), path)
    with pytest.raises(ValueError, match="on the meta device"):
        to_onnx(create_model("hifuse_tiny", device="meta").eval(), path)
    model = make(torch.float32)
    model.conv_head.bias.data[0] = float("inf")
    with pytest.raises(ValueError, match=r"conv_head.bias has values that are not finite"):
        to_onnx(model, path)
    monkeypatch.setattr(onnx, "_MOST_BYTES", 1)
    with pytest.raises(ValueError, match="at most 2 GiB of weights"):
        to_onnx(make(torch.float32), path)
    monkeypatch.undo()
    monkeypatch.setattr(onnx, "_check_packages", lambda: None)
    with pytest.raises(OSError, match="cannot be written"):
        to_onnx(make(torch.float32), tmp_path / "absent" / "a.onnx")


def test_absent_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install onnx onnxscript"):
        to_onnx(make(torch.float32), tmp_path / "a.onnx")


def test_greyscale_metadata() -> None:
    assert onnx._preprocess(make(in_chans=1), (64, 64), Preprocess(64, mean=(0.1, 0.2, 0.3))) == {
        "image_size": 64, "resize": 256, "mean": (0.1,), "std": (0.5,), "interpolation": "bilinear", "color": "L",
    }  # fmt: skip
    assert onnx._preprocess(make(in_chans=3), (64, 32), None) is None
    assert onnx._preprocess(make(in_chans=2), (64, 64), None) is None
