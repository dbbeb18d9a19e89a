"""What torch.compile must be told of functions that it cannot trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def constant(function: Function) -> Function:
    """Tell torch.compile to call `function` while it traces, and to keep what it returns.

    `torch.compiler.assume_constant_result` does no more, but it imports torch._dynamo, which takes a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
