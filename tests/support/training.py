"""Runs of `hifuse-fast train` on small images with a narrow network, in processes of their own that can be killed.

A server process has imported everything that a run needs, and every run is a fork of it: a second instead of ten.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

import hifuse_fast.checkpoints.save as saving
from hifuse_fast.app import journal
from hifuse_fast.cli import main
from tests.support.examples import save_splits

NETWORK = ["dims=[8, 16, 24, 32]", "depths=[1, 1, 1, 1]", "num_heads=[1, 2, 2, 4]"]
DROPPING = [
    f"{name}=0.2" for name in ("drop_rate", "attn_drop_rate", "drop_path_rate", "conv_drop_path_rate", "hff_drop_path_rate")
]
#: Two epochs of three steps, with all that is drawn and all that is kept; image sides that are padded.
EXACT: dict[str, Any] = {
    "epochs": 2, "batch-size": 6, "accumulate": 2, "image-size": 40, "lr": 1e-3, "ema": 0.9, "clip": 1.0, "rotation": 20,
    "colour-jitter": 0.2, "save-every": 2, "network": [*NETWORK, *DROPPING],
}  # fmt: skip


def flags(**settings: Any) -> list[str]:
    """Settings as flags of a narrow network, of one epoch."""
    settings = {"epochs": 1, "batch_size": 4, "image_size": 32, "workers": 0, "network": NETWORK, **settings}
    arguments = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        for each in value if isinstance(value, list) else [value]:
            arguments += [flag] if each is True else [flag, str(each)]
    return arguments


def make_data(folder: Path) -> Path:
    """14 images to train on, 6 to validate with."""
    return save_splits(folder, 7, 3)


def start(
    arguments: list[Any], errors: Path, fault: tuple[str, int] | None = None, environment: dict[str, str] | None = None
) -> ForkServerProcess:
    """Start the command; what it says goes to the file `errors`.

    Args:
        arguments: of the command.
        errors: takes what goes to stderr.
        fault: what befalls the process, and when: see `_FAULTS`.
        environment: set beside what there is.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.support.training", "hifuse_fast.app.training.train", "sklearn.metrics", "matplotlib.figure", "torch._dynamo"]
    )
    process = context.Process(target=_run, args=([str(a) for a in arguments], errors, fault, environment or {}))
    process.start()
    return process


def finish(process: ForkServerProcess, seconds: float = 300) -> int:
    """The exit code; -9 of a process that was killed."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        raise AssertionError("the run did not end")
    assert process.exitcode is not None
    return process.exitcode


def contents(run: Path) -> dict[str, Any]:
    """All that a run has come to, with bits as they are, by file."""
    found: dict[str, Any] = {name: (run / name).read_bytes() for name in ("log.csv", "splits.csv")}
    for name in ("best.safetensors", "last.safetensors", "state/state.safetensors"):
        found[name] = {key: (t.dtype, t.shape, t.numpy().tobytes()) for key, t in load_file(run / name).items()}
        with safe_open(run / name, "pt") as file:
            metadata = {key: value for key, value in (file.metadata() or {}).items() if key != "format"}
        found[f"{name} metadata"] = {key: json.loads(value) for key, value in metadata.items()}
    return found


def _run(arguments: list[str], errors: Path, fault: tuple[str, int] | None, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of workers, as it is where nobody asked for a server
    signal.signal(signal.SIGINT, signal.default_int_handler)
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    if fault is not None:
        _FAULTS[fault[0]](fault[1])
    main(arguments)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at_call(number: int, function: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose call of that number, from 1 on, is one of `instead`."""
    calls = 0

    def call(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return (instead if calls == number else function)(*args, **options)

    return call


def _kill_in_write(number: int) -> None:
    """Killed in the middle of writing a checkpoint."""

    def half(tensors: Any, path: Path, metadata: Any) -> None:
        save(tensors, path, metadata=metadata)
        os.truncate(path, path.stat().st_size // 2)
        _die()

    save = saving.safetensors.torch.save_file
    saving.safetensors.torch.save_file = _at_call(number, save, half)


def _kill_before_rename(number: int) -> None:
    """Killed when a file is written and not yet in its place."""
    Path.replace = _at_call(number, Path.replace, lambda *_: _die())  # type: ignore[method-assign]


def _kill_after_rename(number: int) -> None:
    """Killed when a file has just taken its place."""

    def replace(self: Path, target: Path) -> None:
        own(self, target)
        _die()

    own = Path.replace
    Path.replace = _at_call(number, own, replace)  # type: ignore[method-assign, assignment]


def _fill_device(number: int) -> None:
    """No file can grow any more."""

    def save_nothing(tensors: Any, path: Path, metadata: Any) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
        save(tensors, path, metadata=metadata)

    save = saving.safetensors.torch.save_file
    saving.safetensors.torch.save_file = _at_call(number, save, save_nothing)


def _kill_in_row(number: int) -> None:
    """Killed in the middle of writing a row of results, counted from 1."""

    def half(self: journal.Journal, value: Any) -> None:
        self._file.write(json.dumps(value).encode()[:40])
        _die()

    journal.Journal._write = _at_call(number + 1, journal.Journal._write, half)  # type: ignore[method-assign]


_FAULTS = {
    "killed in a row": _kill_in_row,
    "killed in a write": _kill_in_write,
    "killed before a rename": _kill_before_rename,
    "killed after a rename": _kill_after_rename,
    "no space": _fill_device,
}


def refused(run: Any, *arguments: Any) -> str:
    """What `train` says where it refuses: one line. `run` is the fixture."""
    done = run("train", *arguments)
    assert done.exit_code == 2, done.output
    said: str = done.stderr.splitlines()[-1]
    return said
