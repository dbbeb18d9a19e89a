"""Options that several commands take, and what becomes of them."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path

import click
import torch
from PIL import Image

PATH = click.Path(path_type=Path)


def find_device(name: str) -> torch.device:
    """The device of --device; ValueError where there is none of that name."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    found = re.fullmatch(r"cpu|cuda(?::([0-9]+))?", name)
    if found is None:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if name != "cpu" and int(found[1] or 0) >= torch.cuda.device_count():  # torch takes cuda:256 for cuda:0
        raise ValueError(f"device {name} is not there: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices")
    return torch.device(name)


def quiet_decoders() -> None:
    """Leave what a damaged or large image means to us: limits are the user's, and damage that matters is an error."""
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit, one for the whole process
    warnings.filterwarnings("ignore", module="PIL")
    for decoder in ("PIL", "tifffile"):
        logging.getLogger(decoder).setLevel(logging.CRITICAL)
