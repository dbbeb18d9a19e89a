"""Where there is no GPU, Triton kernels run in its interpreter: to be said before anything loads them."""

import contextlib
import os
from typing import Any

import pytest
import torch


def patch_once_a_launch() -> None:
    """Make the interpreter prepare triton.language for a function once a launch, and not at every call of it.

    It takes milliseconds, for every tl.sum too, and without this most of the time of the tests.
    """
    from triton.runtime import interpreter

    prepare, launch = interpreter.InterpretedFunction.__call__, interpreter.GridExecutor.__call__
    prepared: set[Any] = set()

    def call(self: Any, *args: Any, **options: Any) -> Any:
        if self.fn in prepared:
            return self.rewrite()(*args, **options)
        prepared.add(self.fn)
        return prepare(self, *args, **options)

    def run(self: Any, *args: Any, **options: Any) -> Any:
        prepared.clear()
        return launch(self, *args, **options)

    interpreter.InterpretedFunction.__call__, interpreter.GridExecutor.__call__ = call, run


def round_to_bfloat16() -> None:
    """Make the interpreter's cast from float32 round to the nearest, as a GPU and PyTorch do: it truncates."""
    from triton import language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(values: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, mode)
        return torch.tensor(values).bfloat16().view(torch.uint16).numpy()

    interpreter._convert_float = rounded


torch.manual_seed(0)  # what test files draw when they are loaded names their tests: the same in every process

# The vendor's convolutions, ours and PyTorch's: float32 is meant where a test says so, and a second call gives the same bits.
torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    with contextlib.suppress(ImportError):
        patch_once_a_launch()
        round_to_bfloat16()


@pytest.fixture
def row() -> Any:
    """A row of the network bench."""
    from hifuse_fast.bench.rows import Row

    return Row(
        date="2026-01-02T03:04:05Z", commit="abc", package="0.1.0", torch="2.13.0", python="3.11.7", device="box-2c", threads=2,
        isa="avx2", suite="network", case="hifuse_tiny", engine="hifuse_fast", dtype="float32", batch=1, mode="inference",
        per="image", ms_p20=99.0, ms_p50=123.456789, ms_p80=150.0, images_per_s=8.1, gflop_per_s=None, gb_per_s=None, ratio=1.5,
        floor_share=0.5, peak_mib=100.0, error=1e-7, note="top-1 1/1",
    )  # fmt: skip
