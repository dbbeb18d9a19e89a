"""The list of calls of a frozen network: what its file carries, so that C runs it without a description of the network.

A list holds for every batch and size: the height and width of each map are those of the padded images, divided by a number.
Which maps lie in the same memory is what the pool does, which hands maps out by their number of elements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.tape import Tape

CALLS, BACKEND = "calls", "backend"  #: keys of metadata: the list, and whose calls are listed
DERIVED = "derived."  #: before the names of tensors that the calls need, and that are made of other ones when a file is read

#: Images whose lists must be the same: no square ones, whose smallest maps could be divided by more than one number.
SHAPES = ((1, 64, 96), (2, 160, 32), (3, 32, 224))

Call = dict[str, Any]


def list_calls(calls: Callable[[Tensor], Tape], tensors: Mapping[str, Tensor]) -> list[Call]:
    """The calls of a network, each with its op and its arguments by name.

    A tensor is written as its name; a map as [slot, per, channels]: it is [batch, height / per, width / per, channels], where
    per = 0 stands for one pixel, and maps of one slot lie in the same memory, one after another; the images as "images".
    Numbers and None are written as they are; how a kernel cuts its work is not among them, which each library decides by the
    sizes of a call. The last map that is written is the result: its pixel has the logits or features.

    Args:
        calls: meta images [B, 1, H, W] -> the tape of the calls that they lead to, none of which is made.
        tensors: those of the file, by name.

    Raises:
        RuntimeError: the calls are not the same for every batch and size; a fault of this package.
    """
    names = {id(tensor): name for name, tensor in tensors.items()}
    first, *others = (_List(torch.empty((b, 1, h, w), device="meta"), names).of(calls) for b, h, w in SHAPES)
    if any(other != first for other in others):
        raise RuntimeError("the calls of a frozen network depend on batch or size, and its file could not say so")
    return first


class _List:
    """The list for images of one shape."""

    def __init__(self, images: Tensor, names: Mapping[int, str]) -> None:
        self._images, self._names = images, names
        self._slots: dict[int, int] = {}

    def of(self, calls: Callable[[Tensor], Tape]) -> list[Call]:
        tape = calls(self._images)  # which keeps its maps alive, so that each has an address of its own
        return [self._call(op, args) for op, args in tape.calls]

    def _call(self, op: Any, args: Any) -> Call:
        if not isinstance(op, str):  # an operator
            arguments = (each.name for each in op._schema.arguments)
            op, args = op._schema.name, dict(zip(arguments, args, strict=True))
        name = op.removeprefix("hifuse_fast::").removesuffix("_out")
        return {"op": name, **{key: self._value(value) for key, value in args.items()}}

    def _value(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return [self._value(each) for each in value]
        if not isinstance(value, Tensor):
            return value
        if value is self._images:
            return "images"
        return self._names[id(value)] if id(value) in self._names else self._map(value)

    def _map(self, value: Tensor) -> list[int]:
        batch, height, width, channels = value.shape
        images, _, rows, columns = self._images.shape
        slot = self._slots.setdefault(value.untyped_storage()._cdata, len(self._slots))
        per = rows // height
        if (batch, per * height, per * width) == (images, rows, columns):
            return [slot, per, channels]
        if (batch, height, width) == (images, 1, 1):
            return [slot, 0, channels]
        raise RuntimeError(f"a map of a frozen network has the shape {list(value.shape)} for images {list(self._images.shape)}")
