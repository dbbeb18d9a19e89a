"""What torch.compile must be told: of functions that it cannot trace, and of numbers that it shall not ask for."""

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


def trace_for_every_size() -> None:
    """While torch.compile traces with dynamic sizes: from here on it makes code that serves every size.

    - Floats that are read, as `eps`, are constants with a guard, as ints are. They would be symbols, each an input of the
      graph. AOTAutograd would find that operators take no such symbols, and have everything traced a second time.
    - PyTorch asks no size that it need not know. It would ask whether a map or a number of windows is 1, to know strides, and
      whether a batch is 16, to choose among convolutions; a graph would be bound to each answer. Now it takes the general one.
      Only where there are no gradients: Inductor cannot compare the strides that a backward has then.
    """
    if torch.compiler.is_dynamo_compiling():
        _change_settings(torch.is_grad_enabled())


_changed: list[tuple[Any, str]] = []  #: settings that are changed by us, and not by the user


@constant
def _change_settings(with_gradients: bool) -> bool:
    from torch._dynamo import callback, config
    from torch.fx.experimental import _config as symbols

    wanted: list[tuple[Any, str]] = [(config, "specialize_float")]
    if not with_gradients:
        wanted.append((symbols, "backed_size_oblivious"))
    for settings, name in wanted:
        if not getattr(settings, name, True):
            setattr(settings, name, True)
            _changed.append((settings, name))
    if _as_before not in callback.callback_handler.end_callbacks:
        callback.callback_handler.register_end_callback(_as_before)
    return True


def _as_before(_: Any) -> None:
    """Called when a compilation ends, also by an error."""
    while _changed:
        setattr(*_changed.pop(), False)
