"""predict.py: rows in the order of the files whatever fails, bounded reading ahead, and files that are whole or not there."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hifuse_fast import OptimizedHiFuse, create_model
from hifuse_fast.app import predict as module
from hifuse_fast.app.predict import predict
from hifuse_fast.data.images import ImageError, Preprocess
from hifuse_fast.inference.serve import can_freeze, freeze

PREPROCESS = Preprocess(image_size=8, resize=8)


class MeanColour(nn.Module):
    """Logits: four times the mean of each channel; remembers the sizes of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(x))
        return 4 * x.mean((2, 3))


def save_colours(folder: Path, colours: list[tuple[int, int, int] | None]) -> list[Path]:
    """One image per colour; for None a file that is no image."""
    paths = [folder / f"{index:03}.png" for index in range(len(colours))]
    for path, colour in zip(paths, colours, strict=True):
        if colour is None:
            path.write_text("no image")
        else:
            Image.new("RGB", (9, 8), colour).save(path)
    return paths


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
@pytest.mark.parametrize("workers", [1, 3])
def test_rows_keep_the_order_and_one_bad_file_loses_no_other(tmp_path, batch_size, workers):
    paths = save_colours(tmp_path, [None, RED, BLUE, None, None, GREEN, RED, None])
    progress = []
    options = {"batch_size": batch_size, "workers": workers, "on_progress": progress.append}
    rows = list(predict(paths, MeanColour(), PREPROCESS, ["r", "g", "b"], **options))
    assert [row.path for row in rows] == paths
    assert [row.label for row in rows] == [None, "r", "b", None, None, "g", "r", None]
    assert [bool(row.error) for row in rows] == [True, False, False, True, True, False, False, True]
    assert "not an image" in rows[0].error
    assert rows[0].probabilities == ()
    assert progress == [min(done, 8) for done in range(batch_size, 8 + batch_size, batch_size)]


def test_probabilities_are_the_softmax_in_float32(tmp_path):
    (path,) = save_colours(tmp_path, [(255, 128, 0)])
    (row,) = predict([path], MeanColour(), PREPROCESS, ["r", "g", "b"])
    logits = 4 * (torch.tensor([255.0, 128.0, 0.0]) / 255 - 0.5) / 0.5
    torch.testing.assert_close(torch.tensor(row.probabilities), logits.softmax(0))
    assert row.probability == max(row.probabilities) == row.probabilities[0]


def test_nothing_to_do():
    model = MeanColour()
    assert list(predict([], model, PREPROCESS, ["r", "g", "b"])) == []
    assert model.batches == []


def test_dtype_reaches_the_model_and_results_are_float32(tmp_path):
    class Typed(MeanColour):
        def forward(self, x):
            assert x.dtype == torch.bfloat16
            return super().forward(x)

    rows = list(predict(save_colours(tmp_path, [RED]), Typed(), PREPROCESS, ["r", "g", "b"], dtype=torch.bfloat16))
    assert sum(rows[0].probabilities) == pytest.approx(1, abs=1e-6)  # a sum in bfloat16 would be off by 1e-3


def test_output_that_is_not_finite_is_an_error_of_that_image(tmp_path):
    class Overflows(MeanColour):
        def forward(self, x):
            return super().forward(x) / (x.mean((1, 2, 3)) > -0.9)[:, None]  # inf for black

    rows = list(predict(save_colours(tmp_path, [RED, (0, 0, 0)]), Overflows(), PREPROCESS, ["r", "g", "b"]))
    assert (rows[0].label, rows[0].error) == ("r", None)
    assert "not finite" in rows[1].error
    assert rows[1].label is None


def rows_of_slow_files(monkeypatch, seconds, loaded):
    def load(path, **_):
        loaded.append(path)
        time.sleep(seconds)
        return module._Loaded(torch.zeros(3, 8, 8))

    monkeypatch.setattr(module, "_load", load)
    paths = [Path(str(index)) for index in range(100)]
    return predict(paths, MeanColour(), PREPROCESS, ["r", "g", "b"], batch_size=4, workers=2)


def test_reading_ahead_is_bounded(monkeypatch):
    loaded: list[Path] = []
    rows = rows_of_slow_files(monkeypatch, 0, loaded)
    for _ in range(5):  # into the second batch
        next(rows)
    time.sleep(0.05)  # in which all 100 would be read, were it not for the bound
    assert 8 <= len(loaded) <= 8 + 2 * 4
    rows.close()


def test_reading_stops_with_the_caller(monkeypatch):
    rows = rows_of_slow_files(monkeypatch, 0.02, [])
    next(rows)
    rows.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("hifuse_fast-decode")]


def test_a_defect_is_not_taken_for_a_bad_image(tmp_path, monkeypatch):
    def broken(path, **_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(module, "_load", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        list(predict([tmp_path], MeanColour(), PREPROCESS, ["r", "g", "b"]))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("you tried to allocate 700 bytes"), RecursionError("deep")])
@pytest.mark.parametrize("place", ["read_image", "preprocess"])
def test_any_failure_of_one_image_is_its_row(tmp_path, monkeypatch, error, place):
    paths = save_colours(tmp_path, [RED, BLUE, GREEN])

    def failing(function):
        def call(first, *arguments, **options):
            result = function(first, *arguments, **options)
            if first == paths[1] or (isinstance(first, Image.Image) and first.getpixel((0, 0)) == BLUE):
                raise error
            return result

        return call

    preprocess = PREPROCESS
    if place == "read_image":
        monkeypatch.setattr(module, "read_image", failing(module.read_image))
    else:
        preprocess = failing(PREPROCESS)
    rows = list(predict(paths, MeanColour(), preprocess, ["r", "g", "b"]))
    assert [row.label for row in rows] == ["r", None, "g"]
    assert rows[1].error == f"cannot be prepared: {type(error).__name__}{f': {error}' if str(error) else ''}"


def test_options_of_decoding_reach_the_reader_and_facts_the_rows(tmp_path):
    values = np.full((8, 8), 4095, dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.tif", save_all=True, append_images=[Image.fromarray(values)] * 2)
    exif = Image.Exif()
    exif[0x0112] = 3
    half = np.zeros((8, 8, 3), dtype=np.uint8)
    half[:2] = RED
    Image.fromarray(half).save(tmp_path / "y.png", exif=exif)
    seen = []

    def preprocess(image):
        seen.append(image.getpixel((0, 0)))
        return PREPROCESS(image)

    paths = [tmp_path / "x.tif", tmp_path / "y.png"]
    options = {"bits": 12, "exif_orientation": True, "workers": 1}
    rows = list(predict(paths, MeanColour(), preprocess, ["r", "g", "b"], **options))
    assert seen == [(255, 255, 255), (0, 0, 0)]
    assert [(row.pages, row.largest) for row in rows] == [(3, 4095), (1, None)]


def test_pixel_limit_reaches_the_reader(tmp_path):
    (row,) = predict(save_colours(tmp_path, [RED]), MeanColour(), PREPROCESS, ["r", "g", "b"], max_pixels=71)
    assert row.error == "9 x 8 pixels are more than the limit of 71"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"max_pixels": 0}, "max_pixels must be at least 1, got 0"),
        ({"bits": 7}, "bits must be an integer from 8 to 16, got 7"),
        ({"dtype": torch.float64}, "dtype must be one of float32, bfloat16, float16"),
        ({"classes": []}, "classes must not be empty"),
        ({"model": MeanColour().train()}, "model must be in eval mode"),
    ],
)
def test_bad_arguments_before_any_work(options, message):
    arguments = {"images": [], "model": MeanColour(), "preprocess": PREPROCESS, "classes": ["r", "g", "b"], **options}
    with pytest.raises(ValueError, match=message):
        predict(**arguments)  # not iterated


def test_wrong_number_of_classes(tmp_path):
    with pytest.raises(ValueError, match="model must give 2 logits"):
        list(predict(save_colours(tmp_path, [RED]), MeanColour(), PREPROCESS, ["r", "g"]))


def test_image_error_is_a_value_error_with_its_reason():
    assert str(ImageError("why", "a.png")) == "a.png: why"
    assert ImageError("why", "a.png").reason == "why"
    assert issubclass(ImageError, ValueError)


@pytest.mark.parametrize(
    ("device", "dtype", "backend", "expected"),
    [
        ("cpu", torch.float32, "auto", True),
        ("cpu", torch.bfloat16, "native", True),
        ("cpu", torch.float16, "auto", False),
        ("cpu", torch.float32, "triton", False),
        ("cuda", torch.float16, "auto", True),
        ("cuda:1", torch.bfloat16, "triton", True),
        ("cuda", torch.float32, "native", False),
        ("cuda", torch.float32, "reference", False),
    ],
)
def test_what_is_frozen_for_inference(device: str, dtype: torch.dtype, backend: str, expected: bool):
    assert can_freeze(torch.device(device), dtype, backend) is expected


@pytest.mark.parametrize("dtype", module.DTYPES.values())
def test_every_dtype_of_the_command_can_be_frozen(dtype: torch.dtype):
    """On a GPU all of them are."""
    told = []
    options = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)}
    network = freeze(create_model("hifuse_tiny", num_classes=3, **options).eval(), dtype, told.append)
    assert isinstance(network, OptimizedHiFuse)
    assert (network.dtype, told) == (dtype, [])
