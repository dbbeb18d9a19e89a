"""The one way to launch a Triton kernel: it runs on a GPU, runs in the interpreter on a CPU, or is kept on record.

A launcher allocates its results, looks up its tile sizes, and calls `launch`. Nothing runs on the meta device or under the fake
tensors of torch.compile, so a launcher is its own shape function. Within `recording(...)` nothing runs either, and each launch
is kept. So kernels can be compiled ahead of time, at the shapes of real calls, on a machine without a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from hifuse_fast.backends import record

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETED = bool(triton.knobs.runtime.interpret)  # kernels run in Triton's interpreter, on CPU tensors: TRITON_INTERPRET=1


@dataclass(frozen=True)
class Launch:
    """What one launch was called with."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    constants: dict[str, Any]  #: compile-time arguments, and num_warps and num_stages


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason no Triton kernel of ours can serve such tensors, or None."""
    if dtype not in DTYPES:
        return f"its kernels serve float32, bfloat16 and float16, not {dtype}"
    if device.type == "cpu" and not INTERPRETED:
        return "it serves CUDA tensors; on CPU tensors only its interpreter runs (TRITON_INTERPRET=1), which is for tests"
    if device.type not in ("cuda", "cpu", "meta"):
        return f"it serves CUDA tensors, not {device.type}"
    return None


def precision(dtype: torch.dtype) -> str:
    """How tensor cores take float32 operands: exactly, unless PyTorch's own setting allows TF32."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Run `kernel[grid](*args, **constants)` on the device of the first argument, a tensor. An empty grid launches nothing."""
    like = args[0]
    if record.keep(Launch(kernel, grid, args, constants)):
        return
    if like.device.type == "meta" or isinstance(like, FakeTensor) or 0 in grid:
        return
    if like.device.type == "cuda" and like.device.index != torch.cuda.current_device():
        with torch.cuda.device(like.device):
            kernel[grid](*args, **constants)
    else:
        kernel[grid](*args, **constants)


def strided(x: Tensor) -> Tensor:
    """`x` if its channels lie side by side, else a copy whose do."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def blocks(length: int, block: int) -> int:
    """How many blocks cover `length`."""
    return (length + block - 1) // block  # of numbers that torch.compile may not know yet: no negative ones
