"""Timing in turns: a machine that slows down slows all engines alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Quantiles of the seconds one call took, and how often it was called."""

    p20: float
    p50: float
    p80: float
    calls: int


def interleave(
    calls: Mapping[str, Call],
    *,
    budget_s: float,
    min_rounds: int = 3,
    max_rounds: int = 1000,
    warmup: int = 1,
    rest_s: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
    timer: Callable[[Call], float] | None = None,
    on_round: Callable[[float], object] | None = None,
) -> dict[str, Timing]:
    """Time `calls` in turns, in rounds A B C, B C A, C A B, ..., until `budget_s` is spent.

    Args:
        calls: what to time, by name.
        budget_s: seconds for all rounds together, without the warm-up. A round that has begun is finished.
        min_rounds: rounds that are run even over the budget.
        max_rounds: rounds after which the rest of the budget is left.
        warmup: calls of each before the first round, not counted.
        rest_s: seconds of sleep before each call, which are not part of its time. Some engines let their threads wait for more
            work in a loop, on the cores that the next engine needs.
        clock: the time in seconds. It serves calls that return when their work is done.
        timer: what gives the seconds of a call instead of `clock`: `cuda.EventTimer` for calls that return before their work
            is done.
        on_round: called after each round with the share of the work that is done, 0 to 1.

    Returns:
        For each name its quantiles in seconds.

    Raises:
        ValueError: there are no calls, or rounds or budget are out of range.
    """
    if not calls:
        raise ValueError("calls must have at least one entry")
    if not 1 <= min_rounds <= max_rounds:
        raise ValueError(f"min_rounds must be from 1 to max_rounds = {max_rounds}, got {min_rounds}")
    if not budget_s >= 0:
        raise ValueError(f"budget_s must be at least 0, got {budget_s}")
    for call in calls.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    begin = clock()
    for done in range(1, max_rounds + 1):
        for name in names:
            time.sleep(rest_s)
            seconds[name].append(timer(calls[name]) if timer else _time_one(calls[name], clock))
        names = names[1:] + names[:1]
        spent = clock() - begin
        if on_round:
            on_round(min(1.0, max(done / max_rounds, spent / budget_s if budget_s else 1.0)))
        if spent >= budget_s and done >= min_rounds:
            break
    return {name: summarise(values) for name, values in seconds.items()}


def _time_one(call: Call, clock: Callable[[], float]) -> float:
    begin = clock()
    call()
    return clock() - begin


def summarise(seconds: list[float]) -> Timing:
    """The quantiles of a list of durations, linear between neighbours."""
    p20, p50, p80 = (
        torch.tensor(seconds, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    )
    return Timing(p20, p50, p80, len(seconds))
