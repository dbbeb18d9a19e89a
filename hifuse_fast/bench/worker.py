"""One engine in a process of its own, so that engines cannot disturb each other.

Waiting threads, allocators, global settings and patches of one engine cannot touch another one. An engine that crashes loses
only its own row. Its memory is that of its process. The processes live side by side, and take turns at being asked for a call.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import logging
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hifuse_fast import create_model, load_checkpoint
from hifuse_fast.bench import machine
from hifuse_fast.bench.network import NUM_CLASSES

LIMIT_S = 1800.0  # for getting ready: the slowest compiler takes a few minutes
GRACE_S = 10.0  # for ending by itself
MEMORY_CALLS = 3  # an allocator may need more than one call to reach its level


Call = Callable[[], Tensor]
Prepare = Callable[[nn.Module, Tensor, torch.dtype], Call]


@dataclass(frozen=True)
class NotedCall:
    """A call, and what its row is to note of how it was prepared."""

    call: Call
    note: str

    def __call__(self) -> Tensor:
        return self.call()


class MissingError(Exception):
    """The engine cannot run here; the message says why."""


@dataclass(frozen=True)
class Engine:
    """How to prepare an engine (a function that a new process can import), and the optional package that it needs."""

    prepare: Prepare
    package: str | None = None


class FailedError(Exception):
    """The engine raised an error or died. The message says what is known."""


@dataclass(frozen=True)
class Task:
    """What an engine is prepared for: a network and its weights, images [B, 3, H, W] in float32, the dtype and the threads."""

    model: str
    checkpoint: Path
    images: np.ndarray[Any, Any]
    dtype: torch.dtype
    threads: int


@dataclass(frozen=True)
class Ready:
    """An engine that is ready: its logits, and what that took.

    Memory is the highest resident memory of the process, less what it was after torch and before the network was loaded. So it
    counts weights, work, and the engine's own libraries.
    """

    logits: np.ndarray[Any, Any]
    seconds: float  #: from the eager network in memory to the first output
    peak_mib: float | None  #: over some calls, when what only the preparation needs is gone
    preparing_mib: float | None  #: over the preparation and the first call
    version: str  #: of the engine's package, "" without one
    note: str = ""  #: of the preparation, see `NotedCall`


class Worker:
    """An engine that gets ready in a new process. A call runs the engine once."""

    def __init__(self, engine: Engine, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self._cache = tempfile.TemporaryDirectory()
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, engine, task, self._cache.name))
        self._process.start()
        other.close()  # so that this end is told when the process dies

    @property
    def pid(self) -> int:
        """The id of its process."""
        assert self._process.pid is not None
        return self._process.pid

    def wait(self, limit_s: float = LIMIT_S) -> Ready:
        """Wait until the engine is ready.

        Raises:
            MissingError, FailedError: it will not be ready.
        """
        if not self._pipe.poll(limit_s):
            raise FailedError(f"not ready after {limit_s:.0f} s")
        ready: Ready = self._receive()
        return ready

    def __call__(self) -> None:
        with contextlib.suppress(ConnectionError):  # it died: what is known of that is said below
            self._pipe.send(True)
        self._receive()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(GRACE_S)
        self._process.kill()  # where it did not end by itself
        self._process.join()
        self._cache.cleanup()

    def _receive(self) -> Any:
        try:
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise FailedError(f"its process ended with exit code {self._process.exitcode}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(pipe: Connection, engine: Engine, task: Task, cache: str) -> None:
    """What the process does: get ready, answer, then run the engine each time it is asked, until the pipe is closed."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # an empty one: what was compiled in another run is not ready sooner
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt), torch.no_grad():
        try:
            call, ready = _prepare(engine, task)
            pipe.send(ready)
            while pipe.recv():
                call()
                pipe.send(None)
        except MissingError as error:
            pipe.send(error)
        except (EOFError, ConnectionError):
            raise
        except Exception as error:
            pipe.send(FailedError(f"{type(error).__name__}: {error}"))


def _prepare(engine: Engine, task: Task) -> tuple[Call, Ready]:
    torch.set_num_threads(task.threads)
    at_start = machine.resident_memory()
    images = torch.from_numpy(task.images)
    owned = [_load(task)]  # handed over, so that an engine which does not need it any more frees it
    made: dict[str, Any] = {}

    def prepare() -> None:
        begin = time.perf_counter()
        made["call"] = engine.prepare(owned.pop(), images, task.dtype)
        made["logits"] = made["call"]()
        made["seconds"] = time.perf_counter() - begin

    def run() -> None:
        for _ in range(MEMORY_CALLS):
            made["call"]()

    preparing = _peak_mib(prepare, at_start)
    gc.collect()
    running = _peak_mib(run, at_start)
    version = f"{engine.package} {importlib.metadata.version(engine.package)}" if engine.package else ""
    logits = made["logits"].float().numpy()
    note = made["call"].note if isinstance(made["call"], NotedCall) else ""
    return made["call"], Ready(logits, made["seconds"], running, preparing, version, note)


def _load(task: Task) -> nn.Module:
    """The network in memory of its own. The tensors of a file are mapped, and the whole file stays mapped while one lives."""
    network = create_model(task.model, num_classes=NUM_CLASSES, device="meta").to_empty(device="cpu").eval()
    network.load_state_dict(load_checkpoint(task.checkpoint))
    return network


def _peak_mib(call: Callable[[], None], at_start: float | None) -> float | None:
    """Resident memory at its highest during `call`, less what there was at the start."""
    before = machine.resident_memory()
    rise = machine.peak_memory(call, torch.device("cpu"))
    return None if at_start is None or before is None or rise is None else before - at_start + rise
