"""predict.py: rows in the order of the files whatever fails, bounded reading ahead, and files that are whole or not there."""

import csv
import json
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
from hifuse_fast.app.output import Row, write_csv, write_json
from hifuse_fast.app.predict import predict
from hifuse_fast.data.classes import load_classes
from hifuse_fast.data.images import ImageError, Preprocess
from hifuse_fast.files import writing
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


# ---- classes


def test_classes_without_a_file_are_the_indices():
    assert load_classes(None, 3) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("class_indices.json", '{"1": "naïve, b", "0": "a", "2": "c"}'),
        ("names.txt", "a\nnaïve, b\r\n c \n\n"),
        ("names.txt", "\ufeffa\nnaïve, b\nc"),
    ],
)
def test_classes_from_a_file(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert load_classes(tmp_path / name, 3) == ["a", "naïve, b", "c"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.txt", b"a\nb", "2 names, but the checkpoint has 3 classes"),
        ("c.txt", b"", "1 names, but|0 names, but"),
        ("c.txt", b"a\n\nc", "every name must be there, and once"),
        ("c.txt", b"a\nb\na", "every name must be there, and once"),
        ("c.txt", b"a\n\xff\nb", "utf-8"),
        ("c.json", b'["a", "b", "c"]', "must map every index to a name"),
        ("c.json", b'{"1": "a", "2": "b", "3": "c"}', "must map every index to a name"),
        ("c.json", b'{"a": 0, "b": 1, "c": 2}', "must map every index to a name"),
        ("c.json", b'{"0": 1, "1": 2, "2": 3}', "every name must be a string"),
        ("c.json", b'{"0": ', "Expecting value"),
    ],
)
def test_bad_classes_name_the_file(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"classes file .*{name}: .*({message})"):
        load_classes(tmp_path / name, 3)


# ---- output

CLASSES = ['comma, and "quote"', "line\nbreak"]
ROWS = [
    Row(Path("a,b\r.png"), CLASSES[1], 0.75, (0.25, 0.75)),
    Row(Path("c\n.png"), error="broken"),
]


def test_csv_survives_any_name(tmp_path):
    with writing(tmp_path / "out.csv") as file:
        write_csv(file, ROWS, CLASSES)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["path", "class", "probability", "error", f"p({CLASSES[0]})", f"p({CLASSES[1]})"],
        ["a,b\r.png", CLASSES[1], "0.75", "", "0.25", "0.75"],
        ["c\n.png", "", "", "broken", "", ""],
    ]


def test_float32_probabilities_survive_the_file(tmp_path):
    values = tuple(torch.rand(50, generator=torch.Generator().manual_seed(0)).tolist())
    with writing(tmp_path / "out.csv") as file:
        write_csv(file, [Row(Path("x"), "0", max(values), values)], [str(i) for i in range(50)])
    with (tmp_path / "out.csv").open(newline="") as file:
        written = list(csv.reader(file))[1][4:]
    assert tuple(np.float32(value) for value in written) == tuple(np.float32(value) for value in values)


def test_json(tmp_path):
    with writing(tmp_path / "out.json") as file:
        write_json(file, ROWS, CLASSES, {"version": "1"})
    written = json.loads((tmp_path / "out.json").read_text())
    assert list(written) == ["version", "classes", "images"]
    assert written["classes"] == CLASSES
    good = {"path": "a,b\r.png", "class": CLASSES[1], "probability": 0.75, "probabilities": [0.25, 0.75], "error": None}
    bad = {"path": "c\n.png", "class": None, "probability": None, "probabilities": [], "error": "broken"}
    assert written["images"] == [good, bad]


def test_names_that_are_not_utf8_keep_their_bytes(tmp_path):
    with writing(tmp_path / "out.csv") as file:
        write_csv(file, [Row(Path("\udcff.png"), error="e")], ["0"])
    assert b'"\xff.png"' in (tmp_path / "out.csv").read_bytes()


@pytest.mark.parametrize("reason", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, reason):
    out = tmp_path / "out.csv"
    out.write_text("old")

    def write_and_fail():
        with writing(out) as file:
            file.write("new")
            file.flush()
            assert out.read_text() == "old"
            raise reason

    with pytest.raises(reason):
        write_and_fail()
    assert out.read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for path, error, message in (
        (tmp_path / "absent" / "out.csv", OSError, r"out\.csv cannot be written: No such file"),
        (tmp_path / "file" / "out.csv", OSError, r"out\.csv cannot be written: Not a directory"),
        (tmp_path, ValueError, "is not a regular file"),
    ):
        with pytest.raises(error, match=message), writing(path):
            pytest.fail("the block must not be entered")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


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
