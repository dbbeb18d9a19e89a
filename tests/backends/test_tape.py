"""The tape of the frozen network on a CPU: what it repeats, when there is none, and that results are the same."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import pytest
import torch

from hifuse_fast import optimize_for_inference
from hifuse_fast.backends.native import library
from hifuse_fast.backends.tape import call, recorded
from hifuse_fast.inference.network import OptimizedHiFuse
from hifuse_fast.inference.stages import Stage
from hifuse_fast.testing import golden_uniform
from tests.support.frozen import narrow

needs_native = pytest.mark.skipif(library.lib is None, reason=str(library.why_missing))


def test_calls_are_kept_and_made_again() -> None:
    x, y = torch.ones(2), torch.zeros(2)
    with recorded() as tape:
        assert call(torch.add, x, y) is not None
        call(y.copy_, x)
    x.fill_(3.0)
    call(y.copy_, torch.full((2,), 7.0))  # not on the tape
    tape.replay()
    assert torch.equal(y, x)


def test_a_tape_within_a_tape_keeps_the_inner_calls_alone() -> None:
    y = torch.zeros(1)
    with recorded() as outer:
        call(y.add_, 1)
        with recorded() as inner:
            call(y.add_, 10)
        call(y.add_, 100)
    y.zero_()
    inner.replay()
    assert y.item() == 10
    outer.replay()
    assert y.item() == 111


def images(name: str, batch: int = 2, side: int = 64) -> torch.Tensor:
    return golden_uniform(name, (batch, 2, side, side)).float()


def passes(network: OptimizedHiFuse, *calls: torch.Tensor) -> int:
    """How often a call went through the modules."""
    with mock.patch.object(Stage, "forward", autospec=True, side_effect=Stage.forward) as forward:
        for each in calls:
            network(each)
    return forward.call_count // len(network.stages)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_replayed_calls_give_what_the_modules_give(dtype: torch.dtype) -> None:
    """Other images, other batch sizes in between, and memory that was full of NaN."""
    network, fresh = (optimize_for_inference(narrow(), dtype=dtype, backend="native") for _ in range(2))
    network(torch.full((2, 2, 64, 64), float("nan")))
    assert passes(network, images("a"), images("b", batch=3), images("c")) == 1  # of the new batch size
    for name in ("a", "b"):
        expected = copy.deepcopy(fresh)(images(name))  # whose maps are new
        assert torch.equal(network(images(name)), expected)


@needs_native
def test_results_are_not_overwritten_by_the_next_call() -> None:
    network = optimize_for_inference(narrow(), backend="native")
    first, second = network(images("a")), network(images("b"))
    kept = second.clone()
    network(images("c"))
    assert torch.equal(second, kept)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("backend", "options"),
    [("reference", {}), pytest.param("native", {"features_only": True}, marks=needs_native)],
    ids=["calls that are not the library's", "maps that are returned"],
)
def test_without_a_tape_every_call_goes_through_the_modules(backend: str, options: dict[str, Any]) -> None:
    network = optimize_for_inference(narrow(**options), backend=backend)
    assert passes(network, images("a"), images("a"), images("a")) == 3
