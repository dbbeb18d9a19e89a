"""The order of the backends of an op, on a stand-in for a GPU; also with a third backend, which is made up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from hifuse_fast.backends import select
from hifuse_fast.tuning import calls, rank, table_file, tune
from hifuse_fast.tuning.cases import Case

SECTION, KEY = "layer_norm", "16-bit 96 pixels"
PRESENT = ["triton", "reference"]
ORIGIN = "Some GPU, 2026-01-02, torch 2.11.0, triton 3.6.0"


class Gpu:
    """A GPU on which each backend takes the milliseconds that are given for each case, one after the other."""

    def __init__(self, **times: Sequence[float]) -> None:
        self.times, self.measured = {name: list(each) for name, each in times.items()}, []

    def results(self, case: Case) -> list[Tensor]:
        return [torch.ones(3)]

    def seconds(self, case: Case) -> float:
        self.measured.append((case.backend, case.mode))
        return 1e-3 * self.times[case.backend].pop(0)

    def faults(self, case: Case) -> list[str]:
        return []

    def check(self) -> None:
        pass


def never() -> bool:
    return False


@pytest.fixture
def cases() -> list[Case]:
    (call,) = calls.choose("layer_norm norm1 56x56")
    return [Case(call, 64, "bfloat16", mode, "auto") for mode in calls.MODES]


@pytest.fixture(autouse=True)
def triton_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no other kernels of the op were there: a `Gpu` has times for those that a test names."""
    monkeypatch.setitem(select.OPS, SECTION, ("triton",))


@pytest.fixture
def third(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(select.OPS, SECTION, ("third", "triton", "native"))
    monkeypatch.setitem(select.RUNS_ON, "third", ("cuda",))


def ranked(cases: Sequence[Case], bench: Gpu, present: Sequence[str] = PRESENT) -> rank.Ranked:
    found = rank.rank(SECTION, cases, present, bench, late=never)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("times", "order", "ratio"),
    [
        ([0.9, 0.4], ["reference", "triton"], 1.67),
        ([4.0, 0.04], ["reference", "triton"], 2.5),  # slower on one case and faster on the mean
        ([0.999, 0.999], ["triton", "reference"], 1.0),  # noise
        ([9.0, 1.0], ["triton", "reference"], 3.0),
    ],
)
def test_an_order_is_written_with_its_evidence(
    tmp_path: Path, cases: list[Case], times: list[float], order: list[str], ratio: float
) -> None:
    table, bench = tmp_path / "sm_90.toml", Gpu(triton=[1.0, 1.0], reference=times)
    options = {"budget_s": 60.0, "jobs": 1, "console": Console(quiet=True)}
    assert tune.run({(SECTION, KEY): cases}, "sm_90", bench, table, ORIGIN, **options) == 0
    assert sorted(bench.measured) == sorted((name, mode) for name in PRESENT for mode in calls.MODES)
    assert table_file.read(table)[SECTION][KEY] == {"order": order, "times": {order[1]: ratio}, "origin": ORIGIN}


@pytest.mark.usefixtures("third")
def test_an_order_of_three_is_written(tmp_path: Path, cases: list[Case]) -> None:
    assert rank.rivals(SECTION) == ["reference", "third", "triton"]  # the native kernels run on no GPU
    bench = Gpu(third=[0.5, 0.5], triton=[1.0, 1.0], reference=[9.0, 1.0])
    table, console = tmp_path / "sm_90.toml", Console(record=True, width=200, file=(tmp_path / "log").open("w"))
    options = {"budget_s": 60.0, "jobs": 1, "console": console, "output": tmp_path / "copy"}
    assert tune.run({(SECTION, KEY): cases}, "sm_90", bench, table, ORIGIN, **options) == 0
    expected = {"order": ["third", "triton", "reference"], "times": {"triton": 2.0, "reference": 6.0}, "origin": ORIGIN}
    assert table_file.read(table)[SECTION][KEY] == expected
    assert table_file.read(tmp_path / "copy" / "sm_90.toml")[SECTION][KEY] == expected
    assert "layer_norm 16-bit 96 pixels: {'order': ['third', 'triton', 'reference']" in console.export_text()


@pytest.mark.usefixtures("third")
def test_noise_does_not_replace_the_first(cases: list[Case]) -> None:
    bench = Gpu(third=[0.99, 0.99], triton=[1.0, 1.0], reference=[2.0, 2.0])
    assert ranked(cases, bench).entry == {
        "order": ["triton", "third", "reference"],
        "times": {"third": 0.99, "reference": 2.0},
    }
    bench = Gpu(third=[0.99, 0.99], triton=[1.0, 1.0], reference=[2.0, 2.0])
    assert ranked(cases, bench, ["of the future", "reference"]).entry["order"] == ["third", "triton", "reference"]


@pytest.mark.usefixtures("third")
def test_a_rival_that_disagrees_or_cannot_serve_is_left_out_with_its_reason(cases: list[Case]) -> None:
    """Though it is the fastest; and the one that fails at the second case only."""

    class Unequal(Gpu):
        def results(self, case: Case) -> list[Tensor]:
            if case.backend == "triton" and case.mode != "forward":
                raise select.BackendError("backend 'triton' cannot serve layer_norm: it is Sunday\nmore")
            return [torch.full([3], 1.01 if case.backend == "third" else 1.0)]

    found = ranked(cases, Unequal(third=[0.1], triton=[0.1], reference=[1.0, 1.0]))
    assert found.entry == {"order": ["reference"]}
    assert found.left_out == [
        "third: WrongResultError: layer_norm norm1 56x56x96, batch 64, bfloat16",
        "triton: BackendError: backend 'triton' cannot serve layer_norm: it is Sunday",
    ]


def test_where_the_reference_fails_the_others_are_ranked(cases: list[Case]) -> None:
    """It may run out of memory where kernels do not."""

    class Small(Gpu):
        def results(self, case: Case) -> list[Tensor]:
            if case.backend == "reference":
                raise torch.OutOfMemoryError("out of memory")
            return super().results(case)

    found = ranked(cases, Small(triton=[1.0, 1.0]))
    assert found.entry == {"order": ["triton"]}
    assert found.left_out == ["reference: OutOfMemoryError: out of memory"]


def test_where_nothing_can_be_measured_the_entry_stays(tmp_path: Path, cases: list[Case]) -> None:
    class Broken(Gpu):
        def results(self, case: Case) -> list[Tensor]:
            raise RuntimeError("broken")

    table, console = tmp_path / "sm_90.toml", Console(record=True, width=200, file=(tmp_path / "log").open("w"))
    options = {"budget_s": 60.0, "jobs": 1, "console": console, "output": tmp_path / "copy"}
    assert tune.run({(SECTION, KEY): cases}, "sm_90", Broken(), table, ORIGIN, **options) == 0
    assert not table.exists()
    assert "nothing could be measured" in console.export_text()


def test_a_key_that_is_late_is_left(cases: list[Case]) -> None:
    assert rank.rank(SECTION, cases, PRESENT, Gpu(), late=lambda: True) is None


def test_a_lost_device_ends_it(cases: list[Case]) -> None:
    class Lost(Gpu):
        def results(self, case: Case) -> list[Tensor]:
            raise RuntimeError("launch failure")

        def check(self) -> None:
            raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        ranked(cases, Lost())


def test_every_op_has_rivals_on_a_gpu() -> None:
    for op in select.OPS:
        assert rank.rivals(op) == ["reference", *(name for name in ("triton", "cuda") if name in select.OPS[op])]
