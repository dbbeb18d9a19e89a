"""What the CUDA kernels ask of the memories, counted in their emulation: `python -m hifuse_fast.tuning.traffic`.

The network's calls run on CPU tensors, at small sizes, with HIFUSE_CUDA_EMULATED=1. Counted are the turns that the banks of
shared memory take beyond what the bytes need, and the sectors of 32 bytes that a request of device memory touches, from a warp.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hifuse_fast.backends.cuda import library
from hifuse_fast.tuning.calls import DTYPES, Call
from hifuse_fast.tuning.frozen_calls import network_calls

COLUMNS = (
    "call",
    "mode",
    "ldmatrix",
    "conflicts",
    "shared",
    "conflicts",
    "sectors a load",
    "of use",
    "sectors a store",
    "of use",
)
SIDE = "14x14"  #: of the maps: small, and yet each pipeline goes round
SECTOR = 32  #: bytes


@dataclass(frozen=True)
class Traffic:
    """What was counted in one call."""

    call: str
    mode: str
    counters: dict[str, int]

    def cells(self) -> list[str]:
        """The line of the table, see `COLUMNS`."""
        c = self.counters
        shared = [c[name] for name in ("ldmatrix_requests", "ldmatrix_conflicts", "shared_requests", "shared_conflicts")]
        device = [_sectors(*(c[f"{kind}_{name}"] for name in ("requests", "sectors", "bytes"))) for kind in ("load", "store")]
        return [self.call, self.mode, *map(str, shared), *(cell for pair in device for cell in pair)]


def _sectors(requests: int, sectors: int, moved: int) -> tuple[str, str]:
    """Sectors a request, and the share of their bytes that was asked for."""
    return (f"{sectors / requests:.1f}", f"{100 * moved / (SECTOR * sectors):.0f} %") if requests and sectors else ("-", "-")


def count(calls: Sequence[Call], dtype: str = "bfloat16") -> list[Traffic]:
    """Run each call, with gradients where it has them, in the emulation, which must be loaded."""
    assert library.lib is not None
    emulation = library.lib.emulation
    emulation.options(profile=True)
    found = []
    for call in calls:
        for mode in call.modes:
            inputs = call.inputs(1, DTYPES[dtype], "cpu")
            grad = None if mode == "forward" else call.gradient(1, DTYPES[dtype], "cpu")
            emulation.counters()
            call.run(inputs, grad, "cuda")
            found.append(Traffic(call.name, mode, emulation.counters()))
    return found


def is_counted(call: Call) -> bool:
    """Whether the call is small enough, and of an op that has CUDA kernels."""
    return SIDE in call.name and call.has_kernels("cuda")


def measure(names: Sequence[str]) -> tuple[list[Traffic], str | None]:
    """Count in the calls of these names, in a process of its own; or the reason why nothing was counted."""
    done = subprocess.run(
        [sys.executable, "-m", "hifuse_fast.tuning.traffic", *names],
        capture_output=True,
        text=True,
        env={**os.environ, "HIFUSE_CUDA_EMULATED": "1"},
        check=False,
    )
    if done.returncode:
        return [], (done.stderr.strip().splitlines() or ["it was killed"])[-1]
    return [Traffic(**each) for each in json.loads(done.stdout)], None


def main() -> None:
    """Print, for `measure`, what was counted in the calls that are named, or in all."""
    if library.lib is None or not library.EMULATED:
        raise SystemExit(library.why_missing or "HIFUSE_CUDA_EMULATED=1 is not set")
    calls = [call for call in network_calls() if is_counted(call) and call.name in (sys.argv[1:] or [call.name])]
    torch.set_num_threads(1)
    print(json.dumps([dataclasses.asdict(each) for each in count(calls)]))


if __name__ == "__main__":
    main()
