"""The profile by kernel, of launches that are given."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from benchmarks import gpu_profile
from benchmarks.gpu_profile import Launch, shares
from hifuse_fast.bench import rows
from hifuse_fast.bench.rows import Conditions, Row


def launches(calls: int) -> list[Launch]:
    """Two of "a" and one of "b" a call, out of order; a call takes 10 us more than the one before."""
    made = []
    for i in range(calls):
        made += [Launch("b", 100.0 * i + 2, 5.0), Launch("a", 100.0 * i, 10.0 + 10 * i), Launch("a", 100.0 * i + 1, 1.0)]
    return made[::-1]


def test_a_kernel_takes_what_its_launches_of_a_call_take_together() -> None:
    total, a, b = shares(launches(3), 3)
    assert (a.kernel, a.launches, a.per_call, a.median) == ("a", 2, [11, 21, 31], 21)
    assert (b.kernel, b.launches, b.per_call) == ("b", 1, [5, 5, 5])
    assert (total.kernel, total.launches, total.per_call) == ("all kernels", 3, [16, 26, 36])
    assert shares([], 3) == []


def test_calls_that_do_not_launch_alike_have_their_mean() -> None:
    _, found = shares(launches(1)[-1:], 2)
    assert (found.launches, found.per_call) == (0.5, [2.5, 2.5])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("void hifuse::cuda::entry<hifuse::cuda::Forward<7> >(hifuse::cuda::Forward<7>::Params)", "entry<Forward<7> >"),
        ("_forward_kernel", "_forward_kernel"),
        ("a" * 200, "a" * 97 + "..."),
    ],
)
def test_names_are_short(name: str, expected: str) -> None:
    assert gpu_profile.short(name) == expected


def test_rows_replace_those_of_an_earlier_profile(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = Conditions(**{field.name: getattr(row, field.name) for field in fields(Conditions)})
    file = tmp_path / f"{now.device}.csv"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_profile.machine, "conditions", lambda _: now)
    monkeypatch.setattr(gpu_profile, "compile_ahead", lambda call: None)
    monkeypatch.setattr(gpu_profile, "golden", lambda *_: SimpleNamespace(to=lambda device: None))
    monkeypatch.setattr(gpu_profile, "golden_image", lambda *_: SimpleNamespace(to=lambda *_: None))
    monkeypatch.setattr(gpu_profile, "optimize_for_inference", lambda *_, **__: lambda images: None)
    monkeypatch.setattr(gpu_profile, "profiled", lambda call, calls: launches(calls))
    old = replace(row, suite="gpu_profile", dtype="bfloat16", batch=64)
    others = [row, replace(old, case="hifuse_tiny: gone"), replace(old, case="hifuse_small: gone", batch=1)]
    rows.write(file, [*others, replace(old, case="hifuse_small: gone")])
    found = CliRunner().invoke(gpu_profile.main, ["--output", str(tmp_path), "--calls", "3"])
    assert found.exit_code == 0, found.output
    *kept, total, a, b = rows.read(file)
    assert [each.case for each in kept] == [each.case for each in others]
    assert [each.case for each in (total, a, b)] == ["hifuse_small: all kernels", "hifuse_small: a", "hifuse_small: b"]
    assert (a.ms_p20, a.ms_p50, a.ms_p80) == (0.011, 0.021, 0.031)
    assert (a.engine, a.batch, a.per, a.note) == ("hifuse_fast", 64, "call", "2 launches, 80.8 % of all kernels")


def test_without_a_gpu_it_says_what_it_would_do() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    found = CliRunner().invoke(gpu_profile.main)
    assert found.exit_code == 0
    assert "the kernels of hifuse_small, 64 images, would be" in " ".join(found.output.split())
