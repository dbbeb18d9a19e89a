"""How a command ends: its exit code, one clear line for bad input, and a clean end when it is told to stop."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hifuse_fast import BackendError

BAD_RESULTS, BAD_INPUT, DEFECT = 1, 2, 70  # 70: EX_SOFTWARE of sysexits.h
BY_SIGNAL = 128  #: and the number of the signal
_STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_GRACE_S = 10.0
_PIPE = 13  # the number of SIGPIPE, which Python ignores


class Stopped(KeyboardInterrupt):
    """A signal told this process to stop; raised where the main thread was, so that what is unfinished is cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Commands(click.Group):
    """Turns the errors that tell of bad input into one line on stderr, and every other end into its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        with stoppable():
            try:
                return super().invoke(ctx)
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except KeyboardInterrupt as stop:
                note(": ".join(["Interrupted", *_notes(stop)]) + ".")
                ctx.exit(BY_SIGNAL + (stop.number if isinstance(stop, Stopped) else signal.SIGINT))
            except (ValueError, OSError, BackendError, torch.OutOfMemoryError) as error:
                if isinstance(error, OSError) and error.errno == errno.EPIPE:  # `| head` is no error
                    _mute(1, 2)  # Python writes what is left when it ends
                    ctx.exit(BY_SIGNAL + _PIPE)
                note("; ".join([f"Error: {_said(error)}", *_notes(error)]))
                ctx.exit(BAD_INPUT)
            except Exception as error:
                traceback.print_exception(error)
                ctx.exit(DEFECT)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """In this block SIGINT, SIGTERM and SIGHUP raise `Stopped`, where they are not ignored or handled already.

    A terminal that closes sends several. So for ten seconds after one the others are ignored: the clean-up comes to its end.
    """
    last = -_GRACE_S

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal last
        if number not in (signal.SIGINT, signal.SIGTERM):
            _mute_closed_terminal()
        if time.monotonic() - last >= _GRACE_S:
            last = time.monotonic()
            raise Stopped(number)

    before = {}
    if threading.current_thread() is threading.main_thread():  # others cannot set handlers
        handlers = {number: signal.getsignal(number) for number in _STOPPING}
        usual = (signal.SIG_DFL, signal.default_int_handler)
        before = {number: handler for number, handler in handlers.items() if handler in usual}
    try:
        for number in before:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stop_after_step() -> Iterator[Callable[[], int]]:
    """In this block a signal to stop is kept; yields what tells its number, 0 where none came.

    So a step comes to its end. The same signal again, a second later or more, does what it did before: it stops at once.
    """
    kept: dict[int, float] = {}
    before: dict[int, Any] = {}

    def keep(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number in kept and now - kept[number] >= 1 and callable(before[number]):
            before[number](number, frame)
        kept.setdefault(number, now)

    if threading.current_thread() is threading.main_thread():
        before = {number: handler for number in _STOPPING if callable(handler := signal.getsignal(number))}
    try:
        for number in before:
            signal.signal(number, keep)
        yield lambda: next(iter(kept), 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def progress(total: int, *, shown: bool, of: str = "images") -> Iterator[Callable[[int], None]]:
    """A bar on stderr, where it is to be shown and that is a terminal; yields the function that moves it."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal), redirect_stdout=False) as bar:
        task = bar.add_task(of, total=total)
        yield lambda done: bar.update(task, completed=done)


def note(text: str) -> None:
    """A line on stderr, beside the results, which still count where nobody reads it."""
    try:
        click.echo(one_line(text), err=True)
    except BrokenPipeError:
        _mute(2)


def one_line(text: str) -> str:
    """`text` on one line, with what a terminal would not print, or obey, written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.splitlines()))


def _said(error: Exception) -> str:
    """What an error says, without the number that Python puts before the system's reasons."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return error.strerror if error.filename is None else f"{os.fsdecode(error.filename)}: {error.strerror}"


def _notes(error: BaseException) -> list[str]:
    """What was added to the error on its way, as `files.writing` does."""
    return getattr(error, "__notes__", [])


def _mute_closed_terminal() -> None:
    """Output to a terminal that is gone would fail, and hide why the command ended."""
    import termios

    for stream in (1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                _mute(stream)


def _mute(*streams: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream)
    os.close(nowhere)
