"""Labelled images as PyTorch's loader takes them: whichever worker reads one, and whenever, it has the same bits."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hifuse_fast.data.augment import Augment
from hifuse_fast.data.check import Reading
from hifuse_fast.data.draws import AUGMENTATION, Draw, generator
from hifuse_fast.data.examples import Example
from hifuse_fast.data.samples import ImageError, say


class Batch(NamedTuple):
    """Images [n, C, H, W], labels [n], and the indices of the examples."""

    images: Tensor
    labels: Tensor
    indices: list[int]


class Failed(NamedTuple):
    """Why an image could not be read in a worker, as whose exception it would lose its type and gain a traceback."""

    reason: str


@dataclass(frozen=True)
class ImageSet(Dataset["tuple[Tensor, int, int] | Failed"]):
    """Examples, read and prepared: augmented, by the generator of (seed, epoch, index, repeat), or always in the same way.

    Args:
        examples: the images.
        classes: the names of the classes.
        read: file -> image.
        prepare: an `Augment`, or image -> tensor.
        seed: of the augmentation.
        greyscale: whether images become greyscale, of one channel.
    """

    examples: Sequence[Example]
    classes: Sequence[str]
    read: Reading
    prepare: Augment | Callable[[Image.Image], Tensor]
    seed: int = 0
    greyscale: bool = False

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int, int] | Failed:
        example = self.examples[draw.image]
        try:
            image = self.read(example.path)
            if self.greyscale:
                image = image.convert("L").convert("RGB")
            if isinstance(self.prepare, Augment):
                pixels = self.prepare(image, generator(self.seed, AUGMENTATION, *draw))
            else:
                pixels = self.prepare(image)
        except ImageError as error:
            return Failed(str(error))
        except Exception as error:  # whatever a file leads a library to
            return Failed(f"{example.path}: cannot be prepared: {say(error)}")
        return pixels[:1] if self.greyscale else pixels, self.classes.index(example.label), draw.image


def load(images: ImageSet, batches: Iterable[list[Draw]], workers: int, *, pin: bool = False) -> Iterable[Batch | Failed]:
    """The batches, read ahead by `workers` processes, or at the call where there are none."""
    return DataLoader(
        images, batch_sampler=batches, num_workers=workers, collate_fn=_collate, worker_init_fn=_leave_signals_to_the_parent,
        generator=torch.Generator(), pin_memory=pin,
    )  # fmt: skip


def _collate(rows: list[tuple[Tensor, int, int] | Failed]) -> Batch | Failed:
    for row in rows:
        if isinstance(row, Failed):
            return row
    pixels, labels, indices = zip(*rows, strict=True)
    return Batch(torch.stack(pixels), torch.tensor(labels), list(indices))


def _leave_signals_to_the_parent(_: int) -> None:
    """Ctrl-C reaches all processes of a terminal, and the parent may need its batches yet; to end is what it tells a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
