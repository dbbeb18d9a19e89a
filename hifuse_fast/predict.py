"""Images and a network -> one row per image, and rows -> a CSV or JSON file that is whole or not there."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from hifuse_fast.backends import BackendError
from hifuse_fast.images import MAX_PIXELS, ImageError, Preprocess, load_image
from hifuse_fast.inference import optimize_for_inference

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Row:
    """What the network says of one image: the likeliest class, its probability and those of all, or why there is nothing."""

    path: Path
    label: str | None = None
    probability: float | None = None
    probabilities: tuple[float, ...] = ()
    error: str | None = None


def load_classes(path: str | os.PathLike[str] | None, num_classes: int) -> list[str]:
    """The names of the classes 0 ... num_classes - 1, from a file, or the indices themselves where there is none.

    Args:
        path: `*.json` in the form of the official training script, {"0": "name", "1": ...}; any other file is text with a name
            per line; both in UTF-8.
        num_classes: how many the network has.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not of that form, has another number of names, or one of them empty or twice.
    """
    if path is None:
        return [str(index) for index in range(num_classes)]
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _names_of_json(json.loads(text)) if path.suffix.lower() == ".json" else text.rstrip().split("\n")
    except ValueError as error:  # also UnicodeDecodeError and JSONDecodeError
        raise ValueError(f"classes file {path}: {error}") from None
    names = [name.strip() for name in names]
    if len(names) != num_classes:
        raise ValueError(f"classes file {path}: {len(names)} names, but the checkpoint has {num_classes} classes")
    if "" in names or len(set(names)) != len(names):
        raise ValueError(f"classes file {path}: every name must be there, and once; got {names}")
    return names


def _names_of_json(indices: Any) -> list[str]:
    if not isinstance(indices, dict) or set(indices) != {str(index) for index in range(len(indices))}:
        raise ValueError('must map every index to a name: {"0": "name of class 0", "1": ...}')
    names = [indices[str(index)] for index in range(len(indices))]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"every name must be a string, got {names}")
    return names


def can_freeze(device: torch.device, dtype: torch.dtype, backend: str = "auto") -> bool:
    """Whether a network on `device` is to be frozen by `optimize_for_inference`: where its kernels serve it there.

    Under a backend asked for by name, only where that is the one of the device; in float16 on a CPU there are none.
    """
    kernels = "triton" if device.type == "cuda" else "native"
    return backend in ("auto", kernels) and (device.type == "cuda" or dtype != torch.float16)


def freeze(network: nn.Module, dtype: torch.dtype, refused: Callable[[str], object]) -> nn.Module:
    """The network frozen for inference in `dtype`; where a backend cannot serve that, itself in `dtype`.

    Args:
        network: in eval mode; float32 unless it exists in `dtype` alone: what is folded is folded before it is rounded.
        dtype: of the result.
        refused: told why it was not frozen.
    """
    try:
        return optimize_for_inference(network, dtype)
    except BackendError as error:
        refused(f"the network is not frozen for inference, which would be faster: {error}")
        return network.to(dtype)


def predict(
    images: Sequence[Path],
    model: nn.Module,
    preprocess: Preprocess,
    classes: Sequence[str],
    *,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[Row]:
    """Rows in the order of `images`, with probabilities softmax(model(preprocess(image))), the softmax in float32.

    Images are decoded by threads, ahead of the network by two batches at most: memory holds no more than that many
    preprocessed images and one full-size image a thread. An image that cannot be read gives a row with its error.

    Args:
        images: files, as `list_images` finds them.
        model: [B, 3, H, W] -> [B, len(classes)] logits; in eval mode, on `device` and in `dtype`.
        preprocess: image -> [3, H, W].
        classes: names, as `load_classes` reads them.
        batch_size: images per call of the network, at least 1.
        device, dtype: where the network is, and the dtype of its input: float32, bfloat16 or float16.
        workers: decoding threads, at least 1.
        max_pixels: see `load_image`.
        on_progress: called with the number of images done so far, after each batch and before its rows.

    Raises:
        ValueError: an argument that does not fit, before any work. On the first batch: logits of another shape.
        BackendError: while iterating, the backend of `use_backend` cannot serve the network.
    """
    for name, value in (("batch_size", batch_size), ("workers", workers), ("max_pixels", max_pixels)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    if not classes:
        raise ValueError("classes must not be empty: a network without a classifier (num_classes=0) predicts nothing")
    if model.training:
        raise ValueError("model must be in eval mode: call model.eval() first")
    load = partial(_load, preprocess=preprocess, max_pixels=max_pixels)
    inputs = _read_ahead(load, images, workers, ahead=max(2 * batch_size, workers))
    infer = partial(_probabilities, model, torch.device(device), dtype)
    return _rows(images, inputs, infer, classes=classes, batch_size=batch_size, on_progress=on_progress)


def _load(path: Path, preprocess: Preprocess, max_pixels: int) -> Tensor | ImageError:
    try:
        return preprocess(load_image(path, max_pixels))
    except ImageError as error:
        return error


def _read_ahead(
    load: Callable[[Path], Tensor | ImageError], images: Sequence[Path], workers: int, ahead: int
) -> Generator[Tensor | ImageError, None, None]:
    """`load(image)` for each image, in order, computed by `workers` threads, at most `ahead` results waiting."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="hifuse_fast-decode")
    pending: deque[Future[Tensor | ImageError]] = deque()
    try:
        for image in images:
            pending.append(pool.submit(load, image))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also when the caller stops half-way
        pool.shutdown(cancel_futures=True)


@torch.inference_mode()
def _probabilities(model: nn.Module, device: torch.device, dtype: torch.dtype, batch: Sequence[Tensor]) -> Tensor:
    logits: Tensor = model(torch.stack(list(batch)).to(device, dtype))
    return logits.float().softmax(-1).cpu()


def _rows(
    images: Sequence[Path],
    inputs: Generator[Tensor | ImageError, None, None],
    infer: Callable[[Sequence[Tensor]], Tensor],
    *,
    classes: Sequence[str],
    batch_size: int,
    on_progress: Callable[[int], None] | None,
) -> Iterator[Row]:
    with contextlib.closing(inputs):
        for start in range(0, len(images), batch_size):
            paths = images[start : start + batch_size]
            batch = list(islice(inputs, len(paths)))
            readable = [x for x in batch if isinstance(x, Tensor)]
            results = iter(infer(readable) if readable else ())
            if on_progress is not None:
                on_progress(start + len(paths))
            for path, x in zip(paths, batch, strict=True):
                yield _row(path, next(results), classes) if isinstance(x, Tensor) else Row(path, error=x.reason)


def _row(path: Path, probabilities: Tensor, classes: Sequence[str]) -> Row:
    if probabilities.shape != (len(classes),):
        raise ValueError(f"model must give {len(classes)} logits an image, one per class; got {list(probabilities.shape)}")
    if not probabilities.isfinite().all():
        return Row(path, error="the network's output is not finite; where the dtype is float16, try bfloat16")
    values = tuple(probabilities.tolist())
    best = int(probabilities.argmax())
    return Row(path, classes[best], values[best], values)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """A text file that takes the place of `path` when the block ends, and vanishes without a trace when the block raises.

    It is written beside `path` and opened at once, so that a folder that is absent or read-only is found before any work.
    Names of files that are not UTF-8 keep their bytes.

    Raises:
        ValueError: `path` is there and is no regular file.
        OSError: its folder is absent or cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"output {path} exists and is not a regular file")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        file = unfinished.open("w", encoding="utf-8", errors="surrogateescape", newline="")
    except OSError as error:
        raise OSError(f"output {path} cannot be written: {error.strerror}") from None
    try:
        with file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_csv(file: TextIO, rows: Iterable[Row], classes: Sequence[str]) -> None:
    """Rows as they come: path, class, probability, error, and p(NAME) for every class; texts quoted, numbers not."""
    writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)  # minimal quoting would leave a "\r" bare
    writer.writerow(["path", "class", "probability", "error", *(f"p({name})" for name in classes)])
    for row in rows:
        values = row.probabilities or [""] * len(classes)
        writer.writerow([row.path, row.label, row.probability, row.error, *values])


def write_json(file: TextIO, rows: Iterable[Row], classes: Sequence[str], header: Mapping[str, Any]) -> None:
    """One object: the entries of `header`, then "classes", then "images", each with path, class, probability(ies), error."""
    images = [
        {
            "path": str(row.path),
            "class": row.label,
            "probability": row.probability,
            "probabilities": list(row.probabilities),
            "error": row.error,
        }
        for row in rows
    ]
    json.dump({**header, "classes": list(classes), "images": images}, file, indent=2)
    file.write("\n")
