"""The benchmark of a training step on the CPU: every engine that needs no compiler is checked and timed."""

from __future__ import annotations

from benchmarks import training
from benchmarks.gpu_network import Case
from hifuse_fast.bench import turns
from tools import pages

SIZES = (("dims", (8, 16, 24, 32)), ("depths", (1, 1, 1, 1)), ("conv_depths", (1, 1, 1, 1)), ("num_heads", (1, 2, 3, 4)))
NARROW = Case("hifuse_tiny", 2, "float32", "training", 64, SIZES)
LIMITS = turns.Limits({"float32": 1e11}, 1e10)


def test_a_step_is_checked_and_timed() -> None:
    found = training.measure(NARROW, ["eager", "hifuse_fast"], LIMITS, 0.0)
    assert [row.engine for row in found] == ["eager", "hifuse_fast"]
    for row in found:
        assert (row.suite, row.mode, row.per, row.batch) == ("training", "training", "image", 2)
        assert row.ms_p50 is not None, row.note
        assert row.note.startswith("loss ")
        assert row.peak_mib is not None
    page = pages.training(found)
    assert "| hifuse_tiny | hifuse_fast | float32 | 2 |" in page
