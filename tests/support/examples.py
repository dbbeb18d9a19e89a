"""Folders of small images with classes that can be told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def save_class(folder: Path, count: int, shade: int, *, side: int = 24, seed: int = 0) -> list[Path]:
    """Images of noise around a shade of grey, each of other pixels, named by their numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        noise = np.random.default_rng((seed, shade, index)).integers(-40, 41, (side, side + index % 3, 3))
        path = folder / f"{index:03}.png"
        Image.fromarray(np.clip(shade + noise, 0, 255).astype(np.uint8)).save(path)
        paths.append(path)
    return paths


def save_splits(data: Path, train: int = 6, val: int = 4, test: int = 0) -> Path:
    """`data/{train,val,test}/{dark,light}/*`, with so many images of each class."""
    for number, (split, count) in enumerate({"train": train, "val": val, "test": test}.items()):
        for label, shade in (("dark", 60), ("light", 190)):
            if count:
                save_class(data / split / label, count, shade, seed=number)
    return data
