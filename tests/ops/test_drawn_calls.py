"""Calls drawn from the whole space of options, each against the reference by the rule.

A call that fails is named by its seed: `SEED=137 python -m pytest tests/ops/test_drawn_calls.py` makes it again.
"""

from __future__ import annotations

import os

import pytest

from hifuse_fast import ops
from tests.support.drawn import Drawn
from tests.support.drawn_ops import DRAWS
from tests.support.kernels import DEVICE

pytestmark = pytest.mark.gpu
SEEDS = [int(os.environ["SEED"])] if "SEED" in os.environ else range(300)
BLOCK = 100


def failure(seed: int) -> str | None:
    """What is wrong with the call of a seed, or None."""
    drawn = Drawn(seed)
    try:
        drawn.check()
    except Exception as error:  # a valid call must not raise
        return f"{drawn}\n    {type(error).__name__}: {error}"
    return None


def test_every_op_is_drawn() -> None:
    assert sorted(DRAWS) == sorted(ops.__all__), f"on {DEVICE}"
    assert {Drawn(seed).op for seed in range(300)} == set(DRAWS)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_drawn_call_obeys_the_rule(seed: int) -> None:
    wrong = failure(seed)
    assert wrong is None, wrong


@pytest.mark.slow
@pytest.mark.parametrize("first", range(300, 10_300, BLOCK))
def test_ten_thousand_drawn_calls_obey_the_rule(first: int) -> None:
    wrong = [each for each in map(failure, range(first, first + BLOCK)) if each is not None]
    assert not wrong, "\n".join(wrong)
