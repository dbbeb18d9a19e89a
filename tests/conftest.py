"""What must be said before anything loads torch or Triton: idle threads sleep, and without a GPU kernels are emulated."""

import contextlib
import gc
import os
from collections.abc import Iterator
from typing import Any

# Else the threads of OpenMP spin while they wait for work: with two processes on two cores that is half of the time.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from PIL import Image

torch.manual_seed(0)  # what test files draw when they are loaded names their tests: the same in every process

# The vendor's convolutions, ours and PyTorch's: float32 is meant where a test says so, and a second call gives the same bits.
torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = os.environ["HIFUSE_CUDA_EMULATED"] = "1"
    with contextlib.suppress(ImportError):
        from tests.support import interpreter

        interpreter.adapt()


#: Files that take half a minute of a core, the longest first.
LONGEST = ("test_window_attention.py", "test_native.py", "test_golden.py", "test_kernel_report.py", "test_export.py",
           "test_gpu_network.py", "test_mlp.py", "test_network.py", "test_model.py", "test_fused.py")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest go first: of two processes, neither is left with one of them in the end."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported and collected stays: the garbage collector need not look at half a million objects again and again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="module", autouse=True)
def limit_of_pillow() -> Iterator[None]:
    """The commands lift Pillow's limit for their whole process, which here has other tests to run."""
    limit = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = limit


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
