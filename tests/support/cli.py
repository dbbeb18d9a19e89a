"""What the tests of the command line share: the command, images, and what a network says of them without it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hifuse_fast.checkpoints import create_model_from_checkpoint
from hifuse_fast.data.images import Preprocess, load_image
from tests.support import processes
from tests.support.paths import ROOT

CLASSES = ["benign, clear", "malignant", "unsure"]
SMALL = ["--image-size", "64", "--resize", "70"]
PREPROCESS = Preprocess(64, 70)
#: What a training says of its network, as `hifuse-fast train` writes it, as far as the commands read it.
RECORD = {
    "classes": ["one", "zwei", "trois"],
    "images": {
        "preprocess": asdict(Preprocess(64, 70, (0.2, 0.3, 0.4))), "bits": 12, "exif_orientation": True, "greyscale": False,
    },
}  # fmt: skip
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def hifuse(*arguments: object) -> subprocess.CompletedProcess[str]:
    return processes.run(processes.module("hifuse_fast.cli"), *arguments)


def save_noise(path: Path, height: int, width: int, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def by_hand(checkpoint: Path, path: Path) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = create_model_from_checkpoint(checkpoint)(PREPROCESS(load_image(path))[None])
    return logits.softmax(-1)[0]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def probabilities(out: Path) -> torch.Tensor:
    return torch.tensor(json.loads(out.read_text())["images"][0]["probabilities"])
