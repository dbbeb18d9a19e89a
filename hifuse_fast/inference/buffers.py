"""Maps that are reused from call to call: after the first call of a shape, the network allocates none.

A fresh map costs page faults. At these sizes they take as long as the arithmetic of a small op.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from hifuse_fast.backends.tape import Tape


@dataclass(frozen=True)
class Passage:
    """The calls that lead from the stem's maps to the last fused map. Their maps stay where they are."""

    tape: Tape
    first: tuple[Tensor, Tensor]
    last: Tensor


class Maps:
    """The maps of one call at a time. `take` hands a map out; `give` takes it back, for the next `take` of its size."""

    passage: Passage | None = None  #: of the calls that were made on these maps, to be made again

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._free: dict[int, list[Tensor]] = {}  # by number of elements, so that a call takes what the one before it took

    def take(self, *shape: int) -> Tensor:
        """A contiguous map of this shape and of any content."""
        size = math.prod(shape)
        free = self._free.setdefault(size, [])
        if free:
            return free.pop().view(shape)
        with torch.inference_mode(False):  # a tensor of inference mode could not be written to outside of it
            return torch.empty(shape, dtype=self._dtype, device=self._device)

    def give(self, *maps: Tensor) -> None:
        """Take back maps that nobody reads any more."""
        for each in maps:
            self._free[each.numel()].append(each)


class FreshMaps(Maps):
    """Maps that are new each time: for a call that is traced, in which memory has no place and sizes may be unknown."""

    def take(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self._dtype, device=self._device)

    def give(self, *maps: Tensor) -> None:
        pass


def is_traced(images: Tensor) -> bool:
    """Whether a call with these images is to be understood rather than run: by torch.compile, torch.export, a dispatch mode."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return True
    return type(images).__torch_dispatch__ is not Tensor.__torch_dispatch__  # as of a fake tensor


class MapPool:
    """Lends each call a `Maps` of its shape. Of the last few shapes it keeps as many as ran at the same time.

    It has no lock, which a handler of a signal or a forked child would wait for in vain: each step is one that no other thread
    can interrupt, and may find that others have changed what the step before it saw.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, most_shapes: int = 4) -> None:
        self._arguments = dtype, device, most_shapes
        self._most_shapes = most_shapes
        self._idle: OrderedDict[tuple[int, ...], list[Maps]] = OrderedDict()  # the shape that was used last comes last

    @contextlib.contextmanager
    def lend(self, *shape: int) -> Iterator[Maps]:
        """The maps for a call with images of this shape. If the call fails, they are dropped.

        On a GPU, maps are lent to calls of one stream, which run one after another. A CUDA graph that is captured gets its own.
        """
        if self._arguments[1].type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                yield Maps(*self._arguments[:2])
                return
            shape = (*shape, torch.cuda.current_stream(self._arguments[1]).cuda_stream)
        idle = self._idle.setdefault(shape, [])
        with contextlib.suppress(KeyError):
            self._idle.move_to_end(shape)
            while len(self._idle) > self._most_shapes:
                self._idle.popitem(last=False)
        try:
            maps = idle.pop()
        except IndexError:
            maps = Maps(*self._arguments[:2])
        yield maps
        idle.append(maps)  # which nobody has any more, where there were calls of other shapes

    def __reduce__(self) -> Any:
        return MapPool, self._arguments  # a copy of a network starts without maps
