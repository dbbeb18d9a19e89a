"""The cases of `benchmarks.window_attention` under pytest-benchmark: `pytest benchmarks --benchmark-enable`.

Each engine is timed alone, so numbers of different engines compare less well than those of the interleaved script.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import hifuse_fast
from benchmarks.window_attention import ENGINES, Case, all_cases, check, make_inputs, run
from hifuse_fast.tuning.calls import STAGES

CPU = torch.device("cpu")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "case", all_cases(STAGES, (1, 8), CPU), ids=lambda case: f"{case.name} B{case.batch} {case.dtype} {case.mode}"
)
def test_window_attention(benchmark: BenchmarkFixture, case: Case, engine: str) -> None:
    if engine == "native" and (reason := hifuse_fast.info().ops["window_attention"]["native cpu"]):
        pytest.skip(reason)
    inputs = make_inputs(case, CPU)
    function = ENGINES[engine](case, inputs)
    assert check(case, inputs, function)[0], "wrong output: not timed"
    benchmark.group = f"{case.name} B{case.batch} {case.dtype} {case.mode}"
    benchmark(partial(run, function, inputs, case.mode))
