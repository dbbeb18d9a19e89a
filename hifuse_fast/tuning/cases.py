"""What is measured while tuning, a call by one backend, and the GPU that it runs on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import triton
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.backends.record import recording
from hifuse_fast.backends.triton.compile import Compilation, compilations, resources
from hifuse_fast.tuning.calls import DTYPES, Call

GAIN = 0.98  #: of the present time that anything has to reach to replace what is there


@dataclass(frozen=True)
class Case:
    """A call by a backend."""

    call: Call
    batch: int
    dtype: str
    mode: str
    backend: str

    @property
    def moved(self) -> float:
        """Bytes that the call must move."""
        return self.call.moved(self.batch, self.mode, DTYPES[self.dtype].itemsize)

    def bind(self, device: str) -> Callable[[], list[Tensor]]:
        """The call on seeded inputs, to be called again and again under one configuration or another."""
        inputs, grad = self.call.inputs(self.batch, DTYPES[self.dtype], device), None
        if self.mode != "forward":
            grad = self.call.gradient(self.batch, DTYPES[self.dtype], device)
        return self.call.bind(inputs, grad, self.backend)


class Bench(Protocol):
    """Where cases run: a GPU, or a test's stand-in."""

    def results(self, case: Case) -> list[Tensor]:
        """Of the call, under the present configurations."""

    def seconds(self, case: Case) -> float:
        """That the call takes."""

    def faults(self, case: Case) -> list[str]:
        """Why what the call launches is not to be had, as spilled registers."""

    def check(self) -> None:
        """Raise where the device is lost."""


class Cuda:
    """The current CUDA device."""

    def __init__(self) -> None:
        self._held: tuple[Case, dict[str, tables.Config], Callable[[], list[Tensor]]] | None = None

    def _bound(self, case: Case) -> Callable[[], list[Tensor]]:
        # What a prepared op packs may depend on the configuration.
        overridden = tables.overridden()
        if self._held is None or self._held[0] is not case or self._held[1] != overridden:
            self._held = None  # before the next inputs are made
            self._held = (case, overridden, case.bind("cuda"))
        return self._held[2]

    def results(self, case: Case) -> list[Tensor]:
        found = self._bound(case)()
        torch.cuda.synchronize()
        return found

    def seconds(self, case: Case) -> float:
        median: float = triton.testing.do_bench_cudagraph(self._bound(case), rep=5, return_mode="median")
        return 1e-3 * median

    def faults(self, case: Case) -> list[str]:
        architecture = device_architecture()
        made = launched(case, architecture)
        return [fault for each in made for fault in resources(each.compile(), architecture).faults]

    def check(self) -> None:
        torch.cuda.synchronize()


def device_architecture() -> str:
    """That of the current CUDA device."""
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


def launched(case: Case, architecture: str) -> list[Compilation]:
    """What the call launches under the present configurations."""
    with recording(architecture) as record:
        case.bind("meta")()
    return list(dict.fromkeys(compilations(record)))


class WrongResultError(Exception):
    """The results of a call are not those that were expected."""


def check_results(case: Case, found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Raise WrongResultError unless each result is `close` to the one expected."""
    for got, wanted in zip(found, expected, strict=True):
        if not close(got, wanted):
            raise WrongResultError(f"{case.call.name}, batch {case.batch}, {case.dtype}")


def close(got: Tensor, wanted: Tensor) -> bool:
    """Whether two results differ by no more than sums in another order do."""
    if got.shape != wanted.shape or wanted.numel() == 0:
        return got.shape == wanted.shape
    allowed = (8 * torch.finfo(wanted.dtype).eps + 5e-5) * wanted.abs().max().item()
    return (got.double() - wanted.double()).abs().max().item() <= allowed  # False for NaN


def reason_of(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
