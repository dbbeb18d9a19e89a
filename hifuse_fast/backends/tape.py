"""Calls of prepared ops that are kept: to be made again on the same tensors, or to be written into a file.

The compiled library's own calls are operators, by `call`. An op of several launches says what it is called with, by `kept`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Tape:
    """Calls in their order, with their tensors, which it keeps alive."""

    def __init__(self, made: bool = True) -> None:
        #: operators with their arguments; or, of `kept`, names of ops with their arguments by name
        self.calls: list[tuple[Any, Any]] = []
        self.made = made  #: whether calls are made, and not only kept

    def replay(self) -> None:
        """Make the calls again."""
        for op, args in self.calls:
            op(*args)


class _Recording(threading.local):
    def __init__(self) -> None:
        self.tape: Tape | None = None  # in every thread from its start: torch.compile would compile anew where it comes later


_recording = _Recording()


@contextlib.contextmanager
def recorded(made: bool = True) -> Iterator[Tape]:
    """A tape that keeps what this thread calls by `call` within the block. With `made=False` the calls are not made."""
    tape = Tape(made)
    before = _recording.tape
    _recording.tape = tape
    try:
        yield tape
    finally:
        _recording.tape = before


def call(op: Callable[..., Any], *args: Any) -> Any:
    """op(*args), where everything that it writes is among its arguments; kept where a tape is being recorded."""
    tape = _recording.tape
    if tape is not None:
        tape.calls.append((op, args))
        if not tape.made:
            return None
    return op(*args)


def listed() -> bool:
    """Whether calls are recorded and not made."""
    return _recording.tape is not None and not _recording.tape.made


def kept(op: str, **arguments: Any) -> bool:
    """Whether calls are `listed`; then this one is kept, by the name of its op and those of its arguments."""
    tape = _recording.tape
    if tape is None or tape.made:
        return False
    tape.calls.append((op, arguments))
    return True
