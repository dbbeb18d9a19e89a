"""Runs of CUDA kernels in their emulation: in several orders, and what it has seen of their pipelines.

On a GPU nothing is emulated, and there a call simply runs again.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from hifuse_fast.backends.cuda import launch, library

#: Orders in which threads and blocks run, and when asynchronous copies land: as late as they may, or at once.
RUNS = list(itertools.product(("forward", "reverse", "random"), ("late", "early")))


def runs() -> Iterator[str]:
    """Each of `RUNS`, set for what is called meanwhile, by its name."""
    for order, landing in RUNS:
        if library.EMULATED and library.lib is not None:
            library.lib.emulation.options(order=order, landing=landing)
        try:
            yield f"{order}, {landing}"
        finally:
            if library.EMULATED and library.lib is not None:
                library.lib.emulation.options()


def check_runs(call: Callable[[], Sequence[Tensor]]) -> None:
    """The results of `call` have the same bits in all runs. An error of the emulation is raised by the call itself."""
    first: Sequence[Tensor] | None = None
    for name in runs():
        results = call()
        first = results if first is None else first
        for place, (one, other) in enumerate(zip(first, results, strict=True)):
            assert torch.equal(one, other), f"result {place} has other bits in the run {name}"


@contextlib.contextmanager
def launched() -> Iterator[list[str]]:
    """Collects the entry points of the CUDA library that are called within the block."""
    found: list[str] = []
    call = launch._call

    def collect(kept: launch.Launch, stream: int) -> None:
        found.append(kept.entry)
        call(kept, stream)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_call", collect)
        yield found


def stages_used_once() -> list[str]:
    """Which stages of pipelines were filled only once in each block since the last call; none on a GPU."""
    found: list[str] = library.lib.emulation.stages_used_once() if library.EMULATED and library.lib is not None else []
    return found
