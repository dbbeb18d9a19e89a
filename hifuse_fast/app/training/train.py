"""A run: asked for, checked, begun or continued, and kept in its folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from hifuse_fast import use_backend
from hifuse_fast.app.console import stop_after_step
from hifuse_fast.app.training.folder import RunFolder
from hifuse_fast.app.training.keeper import Keeper
from hifuse_fast.app.training.loop import Training
from hifuse_fast.app.training.network import make_network
from hifuse_fast.app.training.plan import make_plan
from hifuse_fast.app.training.ranks import Ranks, joined
from hifuse_fast.app.training.state import read_state

Note = Callable[[str], object]


def train(
    output: Path,
    settings: Mapping[str, Any],
    *,
    toml: Path | None = None,
    resume: bool = False,
    override: bool = False,
    find_device: Callable[[str], torch.device] = torch.device,
    note: Note = lambda _: None,
) -> None:
    """Train a network; what comes of it lies in the folder `output`.

    Args:
        output: the folder of the run.
        settings: those of `Configuration` that are given; they win over `toml`.
        toml: a file of settings.
        resume: continue the run in `output`.
        override: let a resumed run have other settings than before, where they are harmless.
        find_device: the setting `device` -> a device.
        note: told how it goes.

    Raises:
        ValueError, OSError: settings or data that do not fit, or files that cannot be written; before the first step where that
            can be known.
        Stopped: a signal told it to stop, and the state was written.
    """
    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(joined())
        stack.enter_context(torch.random.fork_rng([]))
        say = note if ranks.is_first else (lambda _: None)
        folder = RunFolder(output)
        plan = ranks.first(lambda: make_plan(folder, settings, toml, resume, override, ranks, stack, find_device, say))
        configuration, data = plan.configuration, plan.data
        if data is None:
            return
        stack.enter_context(use_backend(configuration.backend))
        device = _place(find_device(configuration.device), ranks)
        stack.enter_context(_deterministic(device))
        network = make_network(configuration, data.classes, plan.stored, say).to(device)
        if device.type == "cuda":
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if configuration.sync_batch_norm:
            network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
        training = Training(configuration, data, ranks, network, device)
        if plan.stored is not None:
            training.restore(read_state(folder.state))
        keeper = Keeper(folder, training, say)
        with _workers_may_end():
            training.run(keeper, stack.enter_context(stop_after_step()))
        keeper.close(training)


def _place(device: torch.device, ranks: Ranks) -> torch.device:
    """The device of this process."""
    if device.type == "cuda":
        if device.index is None:
            device = torch.device("cuda", ranks.local)
        torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def _workers_may_end() -> Iterator[None]:
    """OSError where the system ended a process that reads images; PyTorch raises a RuntimeError anywhere in the block."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).partition(". ")[0]
        raise OSError(f"a process that reads images has ended: {reason}; what was written before is whole") from None


@contextlib.contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """In this block a CPU gives the same bits for the same call."""
    mode, fills = torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if device.type == "cpu":
        torch.set_deterministic_debug_mode("error")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nobody reads it
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]
