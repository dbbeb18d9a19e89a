"""The cases of `benchmarks.prepared_ops` under pytest-benchmark: `pytest benchmarks --benchmark-enable`.

Each engine is timed alone, so numbers of different engines compare less well than those of the interleaved script.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import hifuse_fast
from benchmarks.prepared_ops import ENGINES, NAMES, Case, all_cases, candidates
from hifuse_fast.tuning.calls import STAGES


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", all_cases(NAMES, STAGES, (1, 8)), ids=lambda case: f"{case.name} B{case.batch} {case.dtype}")
def test_prepared_op(benchmark: BenchmarkFixture, case: Case, engine: str) -> None:
    if engine == "native" and (reason := hifuse_fast.info().ops[f"prepare_{case.op.kind}"]["native cpu"]):
        pytest.skip(reason)
    candidate = candidates(case, [engine])[engine]
    assert candidate.ok, "wrong output: not timed"
    benchmark.group = f"{case.name} B{case.batch} {case.dtype}"
    benchmark(candidate.call)
