"""Real medical images to measure on: the samples of scikit-image, which need no download, and the user's own."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from itertools import chain, cycle, islice, zip_longest
from pathlib import Path

import torch
from torch import Tensor

from hifuse_fast.data.images import ImageError, Preprocess, list_images, load_image

TILE = 224

# Files inside scikit-image's wheel: a fundus photograph (CC0) and an immunohistochemistry slide. `skimage.data` would do, but
# asks a download manager for files that are already there.
_SAMPLES = {"retina": "retina.jpg", "ihc": "ihc.png"}

Named = tuple[str, Tensor]


def load(count: int, folder: Path | None = None) -> tuple[list[str], Tensor]:
    """Names and pixels [count, 3, 224, 224] in float32, normalised with mean and deviation 0.5 (so from -1 to 1).

    Sources take turns (the user's folder, retina, ihc), so the first few images show every source. When all images are used,
    they start again. A file of the folder that cannot be read is named in a warning and left out.

    Raises:
        FileNotFoundError: `folder` does not exist.
        ValueError: there is no image at all; the message says what to do.
    """
    sources = [_tiles(name, path) for name, path in sample_files().items()]
    if folder is not None:
        sources.insert(0, _folder(folder))
    in_turn = (pair for pair in chain.from_iterable(zip_longest(*sources)) if pair is not None)
    pairs = list(islice(in_turn, count))
    if not pairs:
        raise ValueError("no images to measure on: install scikit-image (pip install 'hifuse_fast[bench]') or give a folder")
    names, images = zip(*islice(cycle(pairs), count), strict=True)
    return list(names), torch.stack(images)


def sample_files() -> dict[str, Path]:
    """The sample images by name, {} where scikit-image is not installed."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        return {}
    paths = {name: Path(spec.origin).parent / "data" / file for name, file in _SAMPLES.items()}
    return {name: path for name, path in paths.items() if path.is_file()}


def _tiles(name: str, path: Path) -> Iterator[Named]:
    """All whole tiles, not scaled, from the centre outwards, because the corners of a fundus photograph are black."""
    image, preprocess = load_image(path), Preprocess(image_size=TILE, resize=TILE)
    rows, columns = image.height // TILE, image.width // TILE
    places = [(y, x) for y in range(rows) for x in range(columns)]
    places.sort(key=lambda place: (2 * place[0] - rows + 1) ** 2 + (2 * place[1] - columns + 1) ** 2)
    for y, x in places:
        tile = image.crop((x * TILE, y * TILE, (x + 1) * TILE, (y + 1) * TILE))
        yield f"{name}[{y},{x}]", preprocess(tile)


def _folder(folder: Path) -> Iterator[Named]:
    if not folder.exists():
        raise FileNotFoundError(f"images: {folder} does not exist")
    preprocess = Preprocess(image_size=TILE)
    for path in list_images([folder]):
        try:
            yield path.name, preprocess(load_image(path))
        except ImageError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
