"""What a checkpoint remembers of its training: a record that does not fit is refused."""

import pytest

from hifuse_fast import HiFuse, save_checkpoint
from hifuse_fast.app.remembered import Remembered


def test_a_record_that_does_not_fit_is_refused(tmp_path):
    network = HiFuse(2, dims=(8, 16, 24, 32), depths=(1,) * 4, num_heads=(1,) * 4)
    path = tmp_path / "x.safetensors"
    assert Remembered.of(_saved(network, path, None)) == Remembered()
    for record in (
        {"classes": 3},
        {"classes": ["a"], "images": {}},
        {"classes": ["a"], "images": {"preprocess": {"x": 1}}},
        _with_window([1]),
        _with_window([1, 0]),
    ):
        with pytest.raises(ValueError, match="the record in its metadata does not fit"):
            Remembered.of(_saved(network, path, record))
    with pytest.raises(ValueError, match="names 1 classes, and its network has 2"):
        Remembered(["a"]).names(2)


def _with_window(window):
    images = {"preprocess": {}, "bits": 16, "exif_orientation": False, "greyscale": False, "window": window}
    return {"classes": ["a", "b"], "images": images}


def _saved(network, path, record):
    save_checkpoint(network, path, record)
    return path
