"""Whether a frozen network is still what it was made: asked at every call, because calls that are repeated pass no module."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import nn
from torch.nn.modules import module as module_state

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_ON_ALL_MODULES = [getattr(module_state, f"_global{table}") for table in _HOOKS]


class Watch:
    """The modules of a network, as they are now. Its loops are all in C, over what was looked up before: every call asks.

    Tensors need no watch, because a prepared op keeps its own.
    """

    def __init__(self, network: nn.Module) -> None:
        parts = [module for module in network.modules() if module is not network]
        tables = [module._modules for module in (network, *parts) if module._modules]
        self.__setstate__((parts, tables, [*chain.from_iterable(map(dict.values, tables))]))

    def sees_a_change(self) -> bool:
        """Whether another module is in the place of one, or one has a hook or a forward of its own."""
        return (
            any(self._hooks)
            or any(map(dict.__contains__, self._attributes, self._forward))
            or [*chain.from_iterable(map(dict.values, self._tables))] != self._contents
        )

    def __getstate__(self) -> tuple[Any, ...]:
        return self._parts, self._tables, self._contents

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Also of a copy, whose modules have attributes of their own."""
        self._parts, self._tables, self._contents = state
        self._attributes, self._forward = [vars(module) for module in self._parts], ["forward"] * len(self._parts)
        self._hooks = [getattr(module, table) for module in self._parts for table in _HOOKS] + _ON_ALL_MODULES
