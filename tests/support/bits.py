"""Whether an image's result depends on anything but the image."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch, and so our kernels, on `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_bits(run: Callable[..., Any], *maps: Tensor, what: str = "") -> None:
    """`run(*maps)` gives each image the same bits alone and at every place of batches of 2 to 5, on 1 to 4 threads.

    `maps` are of 5 images or more. A batch of each size runs on a number of threads of its own.
    """

    def results(first: int, count: int) -> list[Tensor]:
        found = run(*(x[first : first + count].contiguous() for x in maps))
        return list(found) if isinstance(found, (tuple, list)) else [found]

    def check(number: int, first: int, count: int) -> None:
        for actual, *expected in zip(results(first, count), *alone[first : first + count], strict=True):
            where = f"{what}, images from {first} on in a batch of {count}, {number} threads"
            assert torch.equal(actual, torch.cat(expected)), where

    images = len(maps[0])
    with threads(1):
        alone = [results(image, 1) for image in range(images)]
    for number in (1, 2, 3, 4):
        with threads(number):
            check(number, number, 1)
            for first in (0, images - number - 1):
                check(number, first, number + 1)
