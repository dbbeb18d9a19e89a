"""What torch.compile must be told: of functions that it cannot trace, and of numbers that do not vary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def constant(function: Function) -> Function:
    """Tell torch.compile to call `function` while it traces, and to keep what it returns.

    `torch.compiler.assume_constant_result` does no more, but it imports torch._dynamo, which takes a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def take_floats_as_constants() -> None:
    """While torch.compile traces: floats that are read from now on, as `eps`, are constants with a guard, as ints are.

    With dynamic sizes they would be symbols, each an input of the graph. AOTAutograd would find that operators take no such
    symbols, and have everything traced a second time.
    """
    if torch.compiler.is_dynamo_compiling():
        _take_floats_as_constants()


@constant
def _take_floats_as_constants() -> bool:
    from torch._dynamo import callback, config

    if not config.specialize_float:
        config.specialize_float = _Floats.constant = True
        if _as_before not in callback.callback_handler.end_callbacks:
            callback.callback_handler.register_end_callback(_as_before)
    return True


class _Floats:
    constant = False  #: by us, and not by the user


def _as_before(_: Any) -> None:
    """Called when a compilation ends, also by an error."""
    if _Floats.constant:
        torch._dynamo.config.specialize_float = _Floats.constant = False
