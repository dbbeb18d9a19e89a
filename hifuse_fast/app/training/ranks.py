"""The processes of one training: one, or many that torchrun starts, each of which has a share of every batch."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hifuse_fast.app.console import BAD_INPUT
from hifuse_fast.app.share import Share

T = TypeVar("T")

_PATIENCE = timedelta(hours=2)  # rank 0 reads all images before the others begin; torchrun sees at once who ends
_GONE = ("closed by peer", "connection reset", "connection refused", "broken pipe", "socket closed", "remote process exited")


@dataclass(frozen=True)
class Ranks:
    """This process among those of the training."""

    rank: int = 0
    world: int = 1
    local: int = 0  #: its number on its machine

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0

    def first(self, function: Callable[[], T]) -> T:
        """What the first process gets of `function`, on every one. Where it raises, the others end without a word."""
        if self.world == 1:
            return function()
        result: list[T | None] = [None]
        if not self.is_first:
            dist.broadcast_object_list(result, src=0)
            if result[0] is None:
                raise SystemExit(BAD_INPUT)
            return result[0]
        try:
            result = [function()]
        finally:
            dist.broadcast_object_list(result, src=0)
        return result[0]  # type: ignore[return-value]

    def sum(self, values: list[float]) -> list[float]:
        """The sums over all processes."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()  # type: ignore[no-any-return]

    def largest(self, value: float) -> float:
        """The largest value of all processes."""
        if self.world == 1:
            return value
        most = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return most.item()

    def gather(self, own: Tensor, total: int) -> Tensor:
        """Rows 0 ... total - 1, of which each process has those of rank, rank + world, ...; on the CPU."""
        own = own.cpu()
        if self.world == 1:
            return own
        most = -(-total // self.world)
        padded = own.new_zeros(most, *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded)
        return torch.stack(parts, 1).flatten(0, 1)[:total]

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network whose gradients are the means over all processes."""
        if self.world == 1:
            return network
        # Of a dimension of size 1, as in depthwise filters: its stride means nothing.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return DistributedDataParallel(
            network, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
        )


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that torchrun's environment names, or one.

    Raises:
        ValueError: the environment names none that can be.
        OSError: another process is gone while this one waits for it.
    """
    share = Share.of_environment()
    if share.world == 1:
        yield Ranks()
        return
    ranks = Ranks(share.rank, share.world, share.local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    try:
        yield ranks
    except RuntimeError as error:
        if any(sign in str(error).lower() for sign in _GONE):
            raise OSError(f"rank {ranks.rank} lost the others: the one that failed says why") from None
        raise
    except (ValueError, OSError) as error:
        error.add_note(f"rank {ranks.rank} of {ranks.world}")
        raise
    dist.destroy_process_group()
