"""Launches that begin before those before them have ended: where the wait stands, and who asks for them."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT

CUDA = ROOT / "csrc" / "cuda"
SOURCE = """
#include <launch.cuh>
struct Scale {
  static constexpr const char* kName = "scale";
  static constexpr int kThreads = 128, kBlocks = 1;
  struct Params { const float* in; float* out; };
  struct Shared { float x[kThreads]; };
  static __device__ void run(const Params& p, Shared& s) {
    s.x[threadIdx.x] = p.in[threadIdx.x];
    __syncthreads();
    p.out[threadIdx.x] = s.x[threadIdx.x ^ 1];
  }
};
template const char* hifuse::cuda::launch<Scale>(dim3, const Scale::Params&, void*);
"""


@functools.cache
def ptx(architecture: str) -> str:
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("there is no CUDA compiler")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "scale.cu"
        source.write_text(SOURCE)
        command = [compiler, "-std=c++20", "-ptx", f"-arch={architecture}", f"-I{CUDA}", f"-I{CUDA.parent}", str(source)]
        subprocess.run([*command, "-o", str(source.with_suffix(".ptx"))], check=True)
        return source.with_suffix(".ptx").read_text()


def instructions(text: str) -> list[str]:
    body = text[text.index(".entry") :]
    body = body[body.index("\n{") :]
    lines = (line.strip() for line in body.splitlines())
    return [line for line in lines if re.match(r"(@\S+ )?[a-z][a-z0-9]*(\.\w+)*[ ;]", line)]


def test_a_kernel_waits_before_it_touches_memory_and_then_lets_the_next_one_begin() -> None:
    found = instructions(ptx("sm_90"))
    wait, launch = found.index("griddepcontrol.wait;"), found.index("griddepcontrol.launch_dependents;")
    assert wait < launch
    touching = [i for i, line in enumerate(found) if re.match(r"(ld|st|cp|atom|red)\.", line) and ".param" not in line]
    assert len(touching) == 4
    assert launch < min(touching)


@pytest.mark.slow
def test_before_sm_90_there_is_nothing_to_wait_for() -> None:
    assert "griddepcontrol" not in ptx("sm_80")


def test_all_kernels_begin_in_the_same_way() -> None:
    """There is one `__global__` function, and one way to call what a kernel does."""
    for path in CUDA.rglob("*.cu*"):
        text = re.sub(r"//.*", "", path.read_text())
        assert ("__global__" in text) == (path.name == "launch.cuh"), path
        assert ("Kernel::run(" in text) == (path.name == "start.cuh"), path
