"""The bench of the ops on a CUDA device, as far as a CPU can tell: its peers, its checks, its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from benchmarks import gpu_ops, gpu_subjects
from hifuse_fast.backends import select
from hifuse_fast.backends.cuda import library
from hifuse_fast.bench import machine, rows, timing, turns
from hifuse_fast.tuning import calls
from tools import pages

CPU = torch.device("cpu")
CUDA = ["cuda"] if library.lib is not None else []
LIMITS = turns.Limits({"float32": 1e12}, 1e11)


def case(name: str, mode: str = "forward", batch: int = 1) -> gpu_ops.Case:
    (subject,) = [subject for subject in gpu_subjects.subjects() if subject.name == name]
    return gpu_ops.Case(subject, batch, "float32", mode)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("mode", calls.MODES)
@pytest.mark.parametrize("shift", [0, 3])
def test_sdpa_and_flex_are_honest_peers(monkeypatch: pytest.MonkeyPatch, mode: str, shift: int) -> None:
    """Flex without its compiler, which has no backward on a CPU."""
    # Eager FlexAttention refuses on a CPU inputs that want a gradient.
    engines = ("reference", "sdpa", "flex") if mode == "forward" else ("reference", "sdpa")
    monkeypatch.setattr(gpu_subjects, "_compile", lambda function: function)
    found = gpu_ops.measure(
        case(f"window_attention shift {shift} 14x14x1152", mode, 2), engines, CPU, limits=LIMITS, budget_s=0.0
    )
    assert [row.engine for row in found] == list(engines)
    assert [row.note for row in found if row.ms_p50 is None] == []


@pytest.mark.parametrize("mode", calls.MODES)
@pytest.mark.parametrize("name", ["global_block 7x7x768", "local_block 7x7x768"])
def test_blocks_are_measured_with_all_their_parameters(name: str, mode: str) -> None:
    measured = case(name, mode)
    found = gpu_ops.measure(measured, ("reference", "hifuse_fast"), CPU, limits=LIMITS, budget_s=0.0)
    assert [row.engine for row in found if row.ms_p50 is not None] == ["reference", "hifuse_fast"]
    assert len(measured.subject.inputs(1, torch.float32, CPU)) == {"g": 10, "l": 7}[name[0]]


def test_frozen_mixers_are_measured_by_each_algorithm() -> None:
    """Forward alone; each backend runs those that it has."""
    found = gpu_ops.all_cases("prepare_mixer", [64], ["bfloat16"], calls.MODES)
    assert [(each.name.split()[1], each.mode) for each in found] == [("dense", "forward")] * 4 + [("winograd2", "forward")] * 3
    engines = [list(gpu_subjects.engines(each.subject)) for each in (found[0], found[-1])]
    assert engines == [["reference", "triton", *CUDA], ["reference", "triton"]]
    narrow = dataclasses.replace(found[-1].subject, maps={"z": (3, 3, 4)}, parameters={"weight": (4, 4, 3, 3)}, out=(3, 3, 4))
    measured = dataclasses.replace(found[-1], subject=narrow, batch=2)
    limits = turns.Limits({"bfloat16": 1e12}, 1e11)
    rows_of = gpu_ops.measure(measured, ("reference", "triton"), CPU, limits=limits, budget_s=0.0)
    assert [(row.engine, row.ms_p50 is not None) for row in rows_of] == [("reference", True), ("triton", True)]


def test_the_frozen_networks_calls_come_first_and_whole_blocks_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    subjects = gpu_subjects.subjects()
    of_frozen = [isinstance(subject, calls.PreparedCall) for subject in subjects]
    assert of_frozen == sorted(of_frozen, reverse=True)
    assert [subject.name for subject in subjects[:2]] == [
        "prepare_global_block global 56x56x96",
        "prepare_fuse_path path 56x56x96",
    ]
    assert list(gpu_subjects.engines(subjects[0])) == ["reference", "triton", *CUDA]
    asked: list[bool] = []
    monkeypatch.setattr(gpu_subjects, "_has_sm90", lambda call: asked.append(True) or call.op == "prepare_mlp")
    engines = {
        subject.op: list(gpu_subjects.engines(subject)) for subject in subjects if isinstance(subject, calls.PreparedCall)
    }
    if CUDA:
        assert engines["prepare_mlp"] == ["reference", "triton", "cuda", "cuda sm_90a"]
        assert engines["prepare_stem"] == ["reference", "triton", "cuda"]


def test_a_whole_block_is_right_by_its_parts() -> None:
    """The reference's are the definition's, in float64 too."""
    (subject,) = [each for each in gpu_subjects.subjects() if each.name == "prepare_global_block global 7x7x768"]
    limits = turns.Limits({"bfloat16": 1e12}, 1e11)
    (row,) = gpu_ops.measure(gpu_ops.Case(subject, 1, "bfloat16", "forward"), ("reference",), CPU, limits=limits, budget_s=0.0)
    assert row.ms_p50 is not None, row.note


SLOW_PEERS = [pytest.param(f"{name} 7x7x768", marks=pytest.mark.slow) for name in ("local_block", "max_mean over pixels")]


@pytest.mark.parametrize("name", ["global_block 7x7x768", *SLOW_PEERS])
@pytest.mark.slow
def test_a_peer_is_compiled_as_one_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but the vendor's code generator."""
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, *, mode, **options: plain(f, backend="aot_eager", **options))
    for mode in calls.MODES:
        (_, row) = gpu_ops.measure(case(name, mode), ("reference", "compile"), CPU, limits=LIMITS, budget_s=0.0)
        assert row.ms_p50 is not None, row.note
        assert row.ready_s is not None


def test_work_of_a_block() -> None:
    block = case("global_block 7x7x768", batch=2)
    c = 768
    assert block.flop == 2 * (2 * 49 * c * 5 * c + 2 * 2 * 49 * 49 * c)
    parameters = 5 * c * c + 5 * c + 2 * c + 169 * 24
    assert block.moved == 4 * (2 * 2 * 49 * c + parameters)


def test_a_wrong_engine_is_not_timed_and_a_failing_peer_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("no such thing\nmore")

    def wrong(subject, *_: object):
        return lambda inputs: 1.001 * subject(inputs, "reference")

    plain = gpu_subjects.engines
    for added in ({"triton": wrong, "flex": failing}, {"triton": failing}):
        monkeypatch.setattr(
            gpu_ops, "engines", lambda subject, added=added: {"reference": plain(subject)["reference"], **added}
        )
        found = gpu_ops.measure(case("layer_norm norm1 7x7x768"), None, CPU, limits=LIMITS, budget_s=0.0)
        by_engine = {row.engine: row for row in found}
        assert by_engine["reference"].ms_p50 is not None
        assert by_engine["triton"].ms_p50 is None
        assert "wrong output" in by_engine["triton"].note
        with pytest.raises(Exception, match="wrong output, not timed: triton layer_norm"):
            turns.report(Console(quiet=True), found, "", None)
        if "flex" in by_engine:
            assert by_engine["flex"].note.startswith("missing: RuntimeError: no such thing")
            assert by_engine["flex"].missing


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> list[gpu_ops.Case]:
    """What was measured, instead of measuring."""
    done = []
    original = gpu_ops.measure

    def record(which: gpu_ops.Case, *arguments: object, **options: object) -> list[rows.Row]:
        done.append(which)
        return original(which, ("reference",), CPU, limits=LIMITS, budget_s=0.0)

    monkeypatch.setattr(gpu_ops, "measure", record)
    monkeypatch.setattr(turns, "limits", lambda *_: LIMITS)
    return done


def run(tmp_path: Path, cases: list[gpu_ops.Case], limit_s: float = 1e9) -> int:
    console = Console(file=(tmp_path / "log").open("w"))
    options = {"output": tmp_path, "limit_s": limit_s, "resume": True, "console": console}
    return gpu_ops.suite(("reference",), 0.0).run_cases(cases, CPU, **options)[1]


def test_rows_are_written_case_by_case_and_a_second_run_goes_on(tmp_path: Path, measure: list[gpu_ops.Case]) -> None:
    first, second = case("layer_norm norm1 7x7x768"), case("max_mean over pixels 7x7x768")
    assert run(tmp_path, [first]) == 0
    file = tmp_path / f"{machine.device_slug(CPU)}.csv"
    assert [row.case for row in rows.read(file)] == [first.name]
    assert run(tmp_path, [first, second], limit_s=-1.0) == 1
    assert run(tmp_path, [first, second]) == 0
    assert measure == [first, second]


def test_cases_are_chosen_by_name_and_the_most_telling_come_first() -> None:
    found = gpu_ops.all_cases("block,window_attention", [64, 1], ["bfloat16"], calls.MODES)
    frozen = 8 + 8  # two blocks and two attentions of each stage
    assert len(found) == 2 * (frozen + 2 * (8 + 8))
    assert [found[0].name, found[0].batch, found[frozen].name, found[frozen + 16].name] == [
        "prepare_global_block global 56x56x96",
        64,
        "global_block 56x56x96",
        "window_attention shift 0 56x56x288",
    ]


def test_without_a_device_it_says_what_it_would_do() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    found = CliRunner().invoke(gpu_ops.main, ["--calls", "fc1", "--batch", "1"])
    assert found.exit_code == 0
    assert "No CUDA device" in found.output
    assert "linear fc1 7x7x768" in found.output
    assert CliRunner().invoke(gpu_ops.main, ["--calls", "none such"]).exit_code == 2


def test_a_timer_replaces_the_clock() -> None:
    told: list[Callable[[], object]] = []

    def timer(call: Callable[[], object]) -> float:
        told.append(call)
        return 0.5

    found = timing.interleave({"a": int, "b": float}, budget_s=0.0, timer=timer)
    assert {name: timed.p50 for name, timed in found.items()} == {"a": 0.5, "b": 0.5}
    assert told[:4] == [int, float, float, int]


def test_every_backend_with_kernels_on_a_gpu_is_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(select.RUNS_ON, "third", ("cuda",))
    monkeypatch.setitem(select.OPS, "layer_norm", ("third", "triton", "native"))
    assert list(gpu_subjects.engines(case("layer_norm norm1 7x7x768").subject)) == ["reference", "compile", "third", "triton"]
    assert list(gpu_subjects.engines(case("local_block 7x7x768").subject)) == ["reference", "compile", "hifuse_fast"]


def test_the_best_of_several_of_ours_stands_against_the_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (turns, pages):
        monkeypatch.setattr(module, "OWN", ("third", "triton"))
    (row,) = gpu_ops.measure(case("layer_norm norm1 7x7x768"), ("reference",), CPU, limits=LIMITS, budget_s=0.0)
    times = {"reference": 12.0, "third": 3.0, "triton": 4.0, "wrong": None}
    found = [dataclasses.replace(row, engine=name, ms_p50=ms, floor_share=0.5) for name, ms in times.items()]
    best = turns.best_own(found)
    assert best is not None
    assert best.engine == "third"
    assert turns.best_own(found[:1]) is None
    assert turns.summary(found) == [
        "float32 forward: third is 4.00x (worst: layer_norm norm1 7x7x768 B1) to 4.00x as fast as reference"
    ]
    assert "| third or triton vs reference |" in pages.gpu_ops(found)
    assert "| 4.00x |" in pages.gpu_ops(found)
    summary = pages.gpu_ops_summary(found)
    assert "| forward | float32 | third, reference | 4.00x | 4.00x | 4.00x | 1 |" in summary
    assert "| forward | float32 | triton, reference | 3.00x | 3.00x | 3.00x | 1 |" in summary


def test_the_pages_show_predictions_and_gpu_rows() -> None:
    assert "| window_attention shift 3 56x56x288 |" in pages.gpu_predictions([])
    assert "predicted, not yet measured" in pages.gpu_predictions([])
    assert "| batch_norm | all | triton (predicted) |" in pages.gpu_choices([])
    row = gpu_ops.measure(case("layer_norm norm1 7x7x768"), ("reference",), CPU, limits=LIMITS, budget_s=0.0)[0]
    ours = dataclasses.replace(row, engine="triton", ms_p50=row.ms_p50 / 2)
    assert "| triton vs reference |" in pages.gpu_ops([row, ours])
    assert "| 2.00x |" in pages.gpu_ops([row, ours])
    assert "Not measured yet" in pages.gpu_ops([])
