"""What torch.compile must be told: of functions that it cannot trace, and of numbers that it shall not ask for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])


def constant(function: Function) -> Function:
    """Tell torch.compile to call `function` while it traces, and to keep what it returns.

    `torch.compiler.assume_constant_result` does no more, but it imports torch._dynamo, which takes a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def trace_for_every_size(images: Tensor) -> None:
    """While torch.compile traces with dynamic sizes: from here on it makes code that serves every size of the images.

    - Floats that are read, as `eps`, are constants with a guard, as ints are. They would be symbols, each an input of the
      graph. AOTAutograd would find that operators take no such symbols, and have everything traced a second time.
    - PyTorch asks no size that it need not know. It would ask whether a map or a number of windows is 1, to know strides, and
      whether a batch is 16, to choose among convolutions; a graph would be bound to each answer. Now it takes the general one.
      Only where there are no gradients: Inductor would take the strides of what a backward is given for constants then, those
      of the first size.
    - With gradients and dynamic sizes, Inductor leaves layouts as they are, as it does on GPUs by itself. On a CPU it would
      order the maps that a backward needs by strides that are expressions, which it cannot compare.
    """
    if torch.compiler.is_dynamo_compiling():
        with_gradients = torch.is_grad_enabled()
        _change_settings(with_gradients)  # before any size is asked for
        if with_gradients and not _is_of_one_size(images):
            _leave_layouts()


def exported_for_every_size() -> contextlib.AbstractContextManager[Any]:
    """In torch.export, without gradients: within the block PyTorch asks no size that it need not know."""
    from torch.fx.experimental import _config as symbols

    if torch.compiler.is_dynamo_compiling() or not hasattr(symbols, "backed_size_oblivious"):
        return contextlib.nullcontext()
    return symbols.patch(backed_size_oblivious=True)  # type: ignore[attr-defined, no-any-return]


def _is_of_one_size(images: Tensor) -> bool:
    """Whether torch.compile takes the sizes for constants. Of a symbol it does not know whether it is even."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true as known

    return all(known(size % 2 == 0) or known(size % 2 == 1) for size in images.shape)


_changed: list[tuple[Any, str, bool]] = []  #: settings that are changed by us, and not by the user; with the user's value


@constant
def _change_settings(with_gradients: bool) -> bool:
    from torch._dynamo import config
    from torch.fx.experimental import _config as symbols

    _change(config, "specialize_float", True)
    if not with_gradients:
        _change(symbols, "backed_size_oblivious", True)
    return True


@constant
def _leave_layouts() -> bool:
    from torch._inductor import config

    _change(config, "layout_optimization", False)
    return True


def _change(settings: Any, name: str, value: bool) -> None:
    """Change a setting until this compilation ends."""
    from torch._dynamo import callback

    if getattr(settings, name, value) != value:
        setattr(settings, name, value)
        _changed.append((settings, name, not value))
    if _as_before not in callback.callback_handler.end_callbacks:
        callback.callback_handler.register_end_callback(_as_before)


def _as_before(_: Any) -> None:
    """Called when a compilation ends, also by an error."""
    while _changed:
        setattr(*_changed.pop())
