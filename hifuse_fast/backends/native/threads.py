"""On which threads the library's ops run: PyTorch's, or within `own_threads` those of the library's own pool.

PyTorch's threads spin where they wait for one another, also for one that the system has taken off its core: beside a busy
neighbour they lose most of their time. Those of the pool (csrc/cpu/pool.h) do not. They are for calls that lie side by side, as
in the frozen network. Between ops of PyTorch, they would meet its threads, which spin for milliseconds after each of its ops.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from hifuse_fast.backends.native.library import lib


def count() -> int:
    """How many threads `own_threads` lends: PyTorch's number, but no more than can compute at the same time.

    Those are the cores of this thread's affinity, within the CPU quota of the process's control groups.
    """
    assert lib is not None
    return min(torch.get_num_threads(), int(lib.usable_cores()))


@contextlib.contextmanager
def own_threads() -> Iterator[None]:
    """Ops of the library that this thread calls within the block run on the library's own threads."""
    assert lib is not None
    before = lib.lend_threads(count())
    try:
        yield
    finally:
        lib.lend_threads(before)
