"""Gradient checkpointing: a block's insides are computed again in the backward pass, which need not keep them till then."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hifuse_fast.backends.select import current_backend, use_backend


def run(block: nn.Module, *maps: Tensor | None, checkpointing: bool) -> Tensor:
    """The block's result; with `checkpointing`, its insides are computed again in the backward pass, on the same backend."""
    if not checkpointing or not torch.is_grad_enabled():
        result: Tensor = block(*maps)
        return result
    options: dict[str, Any] = {"use_reentrant": False}
    if not torch.compiler.is_compiling():  # compiled code keeps its backend, and updates statistics in the forward only
        backend = current_backend()
        options["context_fn"] = lambda: (contextlib.nullcontext(), _AsInForward(block, backend))
    out: Tensor = checkpoint(block, *maps, **options)
    return out


class _AsInForward(contextlib.ExitStack):
    """Around a block that is computed again, on the backend of its forward: once for each backward pass through it."""

    def __init__(self, block: nn.Module, backend: str) -> None:
        super().__init__()
        self._block, self._backend = block, backend

    def __enter__(self) -> Self:
        self.enter_context(use_backend(self._backend))
        self.enter_context(_frozen_statistics(self._block))
        return super().__enter__()


@contextlib.contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Within the block of code, batch norms in training leave their running statistics as they are.

    Gradient checkpointing computes a batch a second time, and the statistics shall count it once.
    """
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
