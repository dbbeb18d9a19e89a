"""Whether a frozen network is still what it was made: asked at every call, because calls that are repeated pass no module."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from itertools import chain, repeat
from typing import Any

from torch import nn
from torch.nn.modules import module as module_state

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_ON_ALL_MODULES = [getattr(module_state, f"_global{table}") for table in _HOOKS]


class Watch:
    """The modules of a network, as they are now. Its loops are all in C, because every call asks.

    Tensors need no watch, because a prepared op keeps its own.
    """

    def __init__(self, network: nn.Module) -> None:
        self._parts = parts = [module for module in network.modules() if module is not network]
        self._hooks = [getattr(module, table) for module in parts for table in _HOOKS]
        self._tables = [module._modules for module in (network, *parts) if module._modules]
        self._contents = list(self._found())

    def sees_a_change(self) -> bool:
        """Whether another module is in the place of one, or one has a hook or a forward of its own."""
        if any(self._hooks) or any(_ON_ALL_MODULES) or any(map(operator.contains, map(vars, self._parts), repeat("forward"))):
            return True
        found = list(self._found())
        return len(found) != len(self._contents) or not all(map(operator.is_, found, self._contents))

    def _found(self) -> Iterator[Any]:
        return chain.from_iterable(map(dict.values, self._tables))
