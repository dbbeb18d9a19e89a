"""What every test of a kernel stands on: the device, the kernels that serve on it, and numbers.

A test that imports this module, or another one of `tests.support` that does, can run on a CUDA device and is marked `gpu`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hifuse_fast.backends import select
from hifuse_fast.testing import golden_uniform

#: Where Triton's kernels and the reference run; without a GPU, Triton's run in its interpreter.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
needs_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="there is no GPU")


def device_of(backend: str) -> torch.device:
    """Where a backend is tested: the compiled library is for CPU tensors alone."""
    return torch.device("cpu") if backend == "native" else DEVICE


def kernels(op: str, *names: str) -> list[Any]:
    """Parameters: these backends' kernels of an op; one that cannot serve on this machine is skipped with its reason.

    An op goes by its name in `hifuse_fast.ops`: "linear" is the function, "prepare_linear" the prepared op.
    """
    made = []
    for name in names:
        reason = select.why_not(op, name, device=device_of(name), dtype=torch.float32)
        made.append(pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=str(reason))))
    return made


def uniform(name: str, *shape: int, scale: float = 1.0) -> Tensor:
    """Numbers in [-scale, scale) that depend on the name, float64, on the device."""
    return (scale * (2 * golden_uniform(name, shape) - 1)).to(DEVICE)
