"""What the report says of the memories."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace
from typing import Any

import pytest

from hifuse_fast.backends import select
from hifuse_fast.backends.cuda import library
from hifuse_fast.tuning import calls, traffic
from hifuse_fast.tuning.traffic import Traffic

NAMES = ("ldmatrix_requests", "ldmatrix_conflicts", "shared_requests", "shared_conflicts", "load_requests", "load_sectors",
         "load_bytes", "store_requests", "store_sectors", "store_bytes")  # fmt: skip


def test_a_line_has_conflicts_and_sectors() -> None:
    counters = dict(zip(NAMES, (10, 2, 30, 4, 10, 40, 640, 0, 0, 0), strict=True))
    cells = Traffic("op part 14x14x96", "forward", counters).cells()
    assert cells == ["op part 14x14x96", "forward", "10", "2", "30", "4", "4.0", "50 %", "-", "-"]
    assert len(cells) == len(traffic.COLUMNS)


def test_only_small_calls_of_ops_with_cuda_kernels_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(select.OPS, "layer_norm", ("triton", "cuda"))
    monkeypatch.setitem(select.OPS, "max_mean", ("triton",))
    counted = [call.name for call in calls.choose("layer_norm,max_mean") if traffic.is_counted(call)]
    assert counted == ["layer_norm norm1 14x14x384", "layer_norm merging 14x14x384"]


def test_each_call_is_counted_forward_and_with_its_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    emulation = SimpleNamespace(options=lambda **o: ran.append(o), counters=lambda: {"launches": len(ran)})
    monkeypatch.setattr(library, "lib", SimpleNamespace(emulation=emulation))
    monkeypatch.setattr(calls.Call, "run", lambda _, inputs, grad, backend: ran.append((grad is None, backend)))
    (call,) = calls.choose("layer_norm norm1 7x7")
    found = traffic.count([call])
    assert ran == [{"profile": True}, (True, "cuda"), (False, "cuda")]
    assert [(each.mode, each.counters["launches"]) for each in found] == [("forward", 2), ("forward+backward", 3)]


def test_why_nothing_was_counted_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 1, "", "Warning\nthe emulated CUDA kernels are not built\n")
    monkeypatch.setattr(traffic.subprocess, "run", lambda *_, **__: done)
    assert traffic.measure(["x"]) == ([], "the emulated CUDA kernels are not built")
