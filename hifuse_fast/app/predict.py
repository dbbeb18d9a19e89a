"""Images and a network -> one row per image."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from hifuse_fast.app.output import Row
from hifuse_fast.data.decode import MAX_PIXELS, Decoded, read_image
from hifuse_fast.data.samples import FULL_BITS, ImageError, Window, check_bits, check_window, say

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class _Loaded:
    """One image's part of a batch, and what its file had besides (`Decoded`)."""

    pixels: Tensor
    pages: int = 1
    largest: int | None = None


def predict(
    images: Sequence[Path],
    model: nn.Module,
    preprocess: Callable[..., Tensor],
    classes: Sequence[str],
    *,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    bits: int = FULL_BITS,
    exif_orientation: bool = False,
    window: Window | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[Row]:
    """Rows in the order of `images`, with probabilities softmax(model(preprocess(image))), the softmax in float32.

    Images are decoded by threads, ahead of the network by two batches at most: memory holds no more than that many
    preprocessed images and one full-size image a thread. An image that cannot be read or prepared, for whatever reason, gives a
    row with its error.

    Args:
        images: files, as `list_images` finds them.
        model: [B, C, H, W] -> [B, len(classes)] logits; in eval mode, on `device` and in `dtype`.
        preprocess: image -> [C, H, W], as `Preprocess` does.
        classes: names, as `load_classes` reads them.
        batch_size: images per call of the network, at least 1.
        device, dtype: where the network is, and the dtype of its input: float32, bfloat16 or float16.
        workers: decoding threads, at least 1.
        max_pixels, bits, exif_orientation, window: see `load_image`.
        on_progress: called with the number of images done so far, after each batch and before its rows.

    Raises:
        ValueError: an argument that does not fit, before any work. On the first batch: logits of another shape.
        BackendError: while iterating, the backend of `use_backend` cannot serve the network.
    """
    for name, value in (("batch_size", batch_size), ("workers", workers), ("max_pixels", max_pixels)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    check_bits(bits)
    check_window(window)
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    if not classes:
        raise ValueError("classes must not be empty: a network without a classifier (num_classes=0) predicts nothing")
    if model.training:
        raise ValueError("model must be in eval mode: call model.eval() first")
    read = partial(read_image, max_pixels=max_pixels, bits=bits, exif_orientation=exif_orientation, window=window)
    load = partial(_load, read=read, preprocess=preprocess)
    inputs = _read_ahead(load, images, workers, ahead=max(2 * batch_size, workers))
    infer = partial(_probabilities, model, torch.device(device), dtype)
    return _rows(images, inputs, infer, classes=classes, batch_size=batch_size, on_progress=on_progress)


def _load(path: Path, read: Callable[[Path], Decoded], preprocess: Callable[..., Tensor]) -> _Loaded | ImageError:
    try:
        decoded = read(path)
        return _Loaded(preprocess(decoded.image), decoded.pages, decoded.largest)
    except ImageError as error:
        return ImageError(error.reason)  # without the frames that hold what was decoded so far
    except Exception as error:  # such as MemoryError: the results of the other images are not lost for one
        return ImageError(f"cannot be prepared: {say(error)}")


def _read_ahead(
    load: Callable[[Path], _Loaded | ImageError], images: Sequence[Path], workers: int, ahead: int
) -> Generator[_Loaded | ImageError, None, None]:
    """`load(image)` for each image, in order, computed by `workers` threads, at most `ahead` results waiting."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="hifuse_fast-decode")
    pending: deque[Future[_Loaded | ImageError]] = deque()
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
    inputs: Generator[_Loaded | ImageError, None, None],
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
            readable = [x.pixels for x in batch if isinstance(x, _Loaded)]
            results = iter(infer(readable) if readable else ())
            if on_progress is not None:
                on_progress(start + len(paths))
            for path, x in zip(paths, batch, strict=True):
                yield _row(path, x, next(results), classes) if isinstance(x, _Loaded) else Row(path, error=x.reason)


def _row(path: Path, image: _Loaded, probabilities: Tensor, classes: Sequence[str]) -> Row:
    if probabilities.shape != (len(classes),):
        raise ValueError(f"model must give {len(classes)} logits an image, one per class; got {list(probabilities.shape)}")
    if not probabilities.isfinite().all():
        error = "the network's output is not finite; where the dtype is float16, try bfloat16"
        return Row(path, error=error, pages=image.pages, largest=image.largest)
    values = tuple(probabilities.tolist())
    best = int(probabilities.argmax())
    return Row(path, classes[best], values[best], values, pages=image.pages, largest=image.largest)
