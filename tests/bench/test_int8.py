"""INT8 judged on trained weights: what is counted, the file, the page; with fake engines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from benchmarks import int8
from benchmarks.int8 import Judged, Result
from hifuse_fast import create_model, save_checkpoint
from hifuse_fast.bench.rows import Conditions
from hifuse_fast.bench.worker import MissingError
from hifuse_fast.testing import golden_weights
from tests.support.cli import RECORD, save_noise

RESULT = Result(
    Conditions("2026-11-29T12:00:00Z", "abc", "0.1", "2.13", "3.11", "cpu-2c", 2, "avx2"),
    256, 851, 0.845, {"hifuse_fast int8": Judged(3, 0.0123, 0.05, 0.01, 0.844, "all of it")},
)  # fmt: skip


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A folder as `make demo` leaves it, with a random network."""
    options = {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "num_classes": 2}
    model = create_model("hifuse_tiny", **options)
    golden_weights(model)
    record = {**RECORD, "classes": ["benign", "suspicious"]}
    (tmp_path / "run").mkdir()
    save_checkpoint(model, tmp_path / "run" / "last.safetensors", record)
    for split, count in (("train", 40), ("test", 6)):
        for i in range(count):
            save_noise(tmp_path / "images" / split / ("benign", "suspicious")[i % 2] / f"{i}.png", 70, 70, i)
    return tmp_path


def test_engines_are_judged_on_images_held_out(
    demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = []

    def turned(model: torch.nn.Module, calibration: Tensor) -> tuple[int8.Forward, str]:
        given.append(calibration)
        return lambda images: model(images).flip(1), "turned"  # type: ignore[return-value]

    def absent(*_: object) -> None:
        raise MissingError("it is not here")

    monkeypatch.setattr(int8, "ENGINES", {"float32": int8.ENGINES["hifuse_fast float32"], "turned": turned, "absent": absent})
    with torch.inference_mode():
        result = int8.run(demo, 32)
    assert [each.shape for each in given] == [(32, 3, 64, 64)]
    assert (result.calibration, result.held_out, list(result.engines)) == (32, 6, ["float32", "turned"])
    exact, other = result.engines["float32"], result.engines["turned"]
    assert (exact.changed, other.changed, other.note) == (0, 6, "turned")
    assert exact.logits_error < 1e-5 < other.logits_error == pytest.approx(2, rel=1e-4)
    assert exact.auroc == result.exact_auroc == pytest.approx(1 - other.auroc)
    assert "absent is left out: it is not here" in capsys.readouterr().err


def test_a_result_comes_back_from_its_file_and_makes_a_page(tmp_path: Path) -> None:
    RESULT.write(tmp_path / "result.json")
    assert Result.read(tmp_path / "result.json") == RESULT
    assert "| hifuse_fast int8 | 3 of 851 | 1.23% | 0.0500 | 0.0100 | 0.8440 | all of it |" in RESULT.page()


def test_a_folder_without_the_demo_is_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(int8.main, ["--folder", str(tmp_path)])
    assert done.exit_code == 1
    assert len(done.output.splitlines()) == 1
