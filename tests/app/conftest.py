"""Fixtures of the command line: a checkpoint, names of classes, an image, and the command in this process."""

import json

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import hifuse_fast
from hifuse_fast.checkpoints import save_checkpoint
from hifuse_fast.cli import main
from tests.support.cli import CLASSES, save_noise


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    torch.manual_seed(0)
    options = {"dims": (16, 32, 64, 128), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}
    save_checkpoint(hifuse_fast.create_model("hifuse_tiny", num_classes=3, **options), path)
    return path


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    path = tmp_path_factory.mktemp("classes") / "class_indices.json"
    path.write_text(json.dumps({str(index): name for index, name in enumerate(CLASSES)}))
    return path


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back what the command sets
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def picture(tmp_path):
    return save_noise(tmp_path / "x.png", 64, 64, 0)
