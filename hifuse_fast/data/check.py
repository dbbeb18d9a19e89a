"""What must be right with labelled images before anybody trains on them."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from hifuse_fast.data.decode import MAX_PIXELS, load_image
from hifuse_fast.data.examples import SPLITS, Example, classes_of
from hifuse_fast.data.samples import FULL_BITS, ImageError, Window, say

Read = Callable[[Path], Image.Image]

_NAMED = 4  #: how many files or groups a message names
_TOGETHER = 2**12  #: how many images are given to the threads at a time


@dataclass(frozen=True)
class Reading:
    """How files are read: the arguments of `load_image`."""

    max_pixels: int = MAX_PIXELS
    bits: int = FULL_BITS
    exif_orientation: bool = False
    window: Window | None = None

    def __call__(self, path: Path) -> Image.Image:
        return load_image(path, self.max_pixels, bits=self.bits, exif_orientation=self.exif_orientation, window=self.window)


def digest(image: Image.Image) -> str:
    """A hash of the size and the pixels of an 8-bit RGB image."""
    return hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).hexdigest()


def digest_examples(
    examples: Sequence[Example], read: Read, workers: int = 1, on_progress: Callable[[int], object] = lambda _: None
) -> list[Example]:
    """The examples, each with the digest of its pixels: every image is decoded once, by `workers` threads.

    Raises:
        ValueError: images that cannot be read, with their reasons.
    """
    done = _digested(examples, read, workers, on_progress)
    failed = [each for each in done if isinstance(each, str)]
    if failed:
        raise ValueError(f"{len(failed)} of {len(done)} images cannot be read: {_few(failed, '; ')}")
    return [each for each in done if isinstance(each, Example)]


def check_pixels_apart(name: str, examples: Sequence[Example], others: Sequence[Example], read: Read, workers: int) -> None:
    """ValueError where images of `examples`, called `name`, have the pixels of some of `others`; unreadable ones have none."""
    theirs, own = (
        {each.digest: each for each in _digested(images, read, workers) if isinstance(each, Example)}
        for images in (others, examples)
    )
    same = [f"{own[digest].path} and {theirs[digest].path}" for digest in own if digest in theirs]
    if same:
        raise ValueError(
            f"{name} must be other images than those that are evaluated, but pixels are the same: {_few(same, '; ')}"
        )


def _digested(
    examples: Sequence[Example], read: Read, workers: int, on_progress: Callable[[int], object] = lambda _: None
) -> list[Example | str]:
    """The examples, each with the digest of its pixels, or why it cannot be read."""

    def digested(example: Example) -> Example | str:
        try:
            return replace(example, digest=digest(read(example.path)))
        except ImageError as error:
            return str(error)
        except Exception as error:  # such as MemoryError
            return f"{example.path}: cannot be read: {say(error)}"

    done: list[Example | str] = []
    pool = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="hifuse_fast-check")
    try:
        for start in range(0, len(examples), _TOGETHER):
            for each in pool.map(digested, examples[start : start + _TOGETHER]):
                done.append(each)
                on_progress(len(done))
    finally:  # also when it is stopped half-way
        pool.shutdown(cancel_futures=True)
    return done


def check_examples(examples: Sequence[Example], *, allow_duplicates: bool = False) -> list[str]:
    """What a user should know of examples whose splits are decided: lines of text.

    Args:
        examples: with splits, and digests where the pixels are to be compared.
        allow_duplicates: whether the same pixels on both sides of a split are said only, and are no error.

    Raises:
        ValueError: no images to train or validate on; fewer than two classes; a class that training lacks; a group, or the same
            pixels, on both sides of a split.
    """
    parts = {split: [example for example in examples if example.split == split] for split in SPLITS}
    for split in ("train", "val"):
        if not parts[split]:
            raise ValueError(f"the data have no images for {split}")
    classes = classes_of(examples)
    if len(classes) < 2:
        raise ValueError(f"the data must have two classes at least, got {', '.join(classes)}")
    notes = []
    for split in ("val", "test"):
        labels = classes_of(replace(example, split="") for example in parts[split])
        unknown = [example for example in parts[split] if example.label not in classes]
        if unknown:
            names = _few(sorted({repr(example.label) for example in unknown}))
            raise ValueError(f"{split} has images of class {names}, which train lacks, such as {unknown[0].path}")
        lacking = sorted(set(classes) - set(labels))
        if parts[split] and lacking:
            notes.append(f"{split} has no images of class {_few(lacking)}.")
    _check_groups(parts)
    return notes + _compare_pixels(parts, allow_duplicates)


def hash_examples(examples: Iterable[Example]) -> str:
    """A hash of splits, classes, pixels and their order, wherever the files are."""
    whole = hashlib.sha256()
    for example in examples:
        whole.update(f"{example.split}\t{example.label}\t{example.digest}\n".encode(errors="surrogateescape"))
    return whole.hexdigest()


def _check_groups(parts: dict[str, list[Example]]) -> None:
    for one, other in itertools.combinations(SPLITS, 2):
        groups = {example.group: example for example in parts[one] if example.group}
        both = {example.group: example for example in parts[other] if example.group in groups}
        if both:
            name, example = min(both.items())
            more = f", and {len(both) - 1} groups more" if len(both) > 1 else ""
            raise ValueError(
                f"group {name!r} is in {one} and in {other}: {groups[name].path} and {example.path}{more}; a group, such as a "
                "patient, must be on one side"
            )


def _compare_pixels(parts: dict[str, list[Example]], allow_duplicates: bool) -> list[str]:
    notes = []
    for one, other in itertools.combinations(SPLITS, 2):
        digests = {example.digest: example for example in parts[one] if example.digest}
        both = [example for example in parts[other] if example.digest in digests]
        if both:
            pairs = [f"{digests[example.digest].path} and {example.path}" for example in both]
            text = f"{len(both)} images of {other} have the same pixels as images of {one}: {_few(pairs, '; ')}"
            if not allow_duplicates:
                raise ValueError(f"{text}; take them out, or say --allow-duplicates")
            notes.append(f"{text}.")
    for split, examples in parts.items():
        same: dict[str, list[Example]] = defaultdict(list)
        for example in examples:
            same[example.digest].append(example)
        repeated = [each for digest, each in same.items() if digest and len(each) > 1]
        if repeated:
            extra = sum(len(each) - 1 for each in repeated)
            notes.append(f"{extra} images of {split} repeat the pixels of others there, such as {repeated[0][1].path}.")
        differing = [each for each in repeated if len({example.label for example in each}) > 1]
        if differing:
            first = differing[0][0]
            second = next(example for example in differing[0] if example.label != first.label)
            pair = " and ".join(f"{example.path} ({example.label})" for example in (first, second))
            notes.append(f"{len(differing)} images of {split} have the same pixels and different classes, such as {pair}.")
    return notes


def _few(texts: Sequence[str], separator: str = ", ") -> str:
    more = f"{separator}and {len(texts) - _NAMED} more" if len(texts) > _NAMED else ""
    return separator.join(texts[:_NAMED]) + more
