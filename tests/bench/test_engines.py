"""The CPU engines' bench: which engine is timed and which is not, its rows, and the pages' tables; with fake engines."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from benchmarks import engines, peers
from hifuse_fast.bench import machine, options, rows, table, timing
from hifuse_fast.bench.network import Subject
from hifuse_fast.bench.rows import Row
from hifuse_fast.bench.worker import Engine, FailedError, MissingError, Ready, Task
from tools import pages

EXACT = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.2, 0.1]], dtype=torch.float64)
DAMAGE = {  # what an engine of this name answers
    "eager": lambda logits: logits,
    "good": lambda logits: logits + 1e-4,
    "wrong": lambda logits: logits * 1.01,
    "nan": lambda logits: logits * float("nan"),
}
LOG: list[str] = []


class FakeRunner:
    """An engine that says to be ready after as many seconds as its name has letters, and whose calls take no time."""

    pid = os.getpid()

    def __init__(self, engine: Engine, task: Task) -> None:
        self.name = engine.package
        self.batch = len(task.images)
        LOG.append(f"start {self.name}")

    def wait(self) -> Ready:
        if self.name == "absent":
            raise MissingError("absent cannot be imported")
        if self.name == "crash":
            raise FailedError("its process ended with exit code -9")
        logits = DAMAGE[self.name](EXACT[: self.batch].float())
        return Ready(logits.numpy(), float(len(self.name)), 100.0, 200.0, f"{self.name} 1.0")

    def __call__(self) -> None:
        LOG.append(f"call {self.name}")

    def close(self) -> None:
        LOG.append(f"close {self.name}")


FAKES = {name: Engine(peers.eager, name) for name in ("eager", "good", "wrong", "nan", "absent", "crash")}


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Row]:
    """The rows of one case by engine, float32 and batch 2."""
    LOG.clear()
    subject = Subject("hifuse_tiny", torch.nn.Linear(1, 1), torch.zeros(2, 3, 8, 8), EXACT, multiply_adds=10**9)
    monkeypatch.setattr(engines.network, "make_subject", lambda model, pixels: subject)
    monkeypatch.setattr(engines.network, "reference_logits", lambda network, pixels, dtype: EXACT.to(dtype))
    monkeypatch.setattr(engines.machine, "arithmetic_peak", lambda device, dtype: 1e12)
    with (tmp_path / "log").open("w") as log:
        found = engines.run(
            ["hifuse_tiny"],
            results=tmp_path,
            dtypes=("float32",),
            batch_sizes=(2,),
            engines=FAKES,
            budget_s=0.0,
            start=FakeRunner,
            console=Console(file=log, width=200),
        )
    return {row.engine: row for row in found}


def test_only_right_engines_are_timed(measured: dict[str, Row]):
    assert {name for name, row in measured.items() if row.ms_p50 is not None} == {"eager", "good"}
    assert {entry.removeprefix("call ") for entry in LOG if entry.startswith("call")} == {"eager", "good"}
    assert [entry for entry in LOG if entry.startswith("start")] == [f"start {name}" for name in FAKES]
    assert sorted(entry for entry in LOG if entry.startswith("close")) == sorted(f"close {name}" for name in FAKES)
    assert LOG.index("start crash") < LOG.index("call eager")  # all are ready before the first is timed


def test_what_the_rows_say(measured: dict[str, Row]):
    good, wrong = measured["good"], measured["wrong"]
    assert (good.suite, good.case, good.dtype, good.batch, good.per) == ("engines", "hifuse_tiny", "float32", 2, "image")
    assert (good.ready_s, good.peak_mib) == (4.0, 100.0)
    assert good.note.startswith("good 1.0, top-1 2/2, prepared in 200 MiB")
    assert good.error == pytest.approx(5e-5, rel=0.01)
    assert good.ratio is not None
    assert good.floor_share is not None
    assert measured["eager"].ratio == 1.0
    assert wrong.error == pytest.approx(0.01, rel=0.01)
    assert "wrong output" in wrong.note
    assert wrong.ready_s is wrong.peak_mib is wrong.ratio is None
    assert "wrong output" in measured["nan"].note
    assert measured["absent"].note == "missing: absent cannot be imported"
    assert measured["crash"].note == "failed: its process ended with exit code -9"


def test_the_log_names_every_engine(measured: dict[str, Row], tmp_path: Path):
    text = (tmp_path / "log").read_text()
    assert "good: ready after 4.0 s" in text
    assert "absent: missing: absent cannot be imported" in text
    assert text.count("FAILED") == 3  # wrong, nan, crash; the absent one has a dash


def test_a_missing_engine_does_not_replace_what_was_measured(tmp_path: Path, measured: dict[str, Row]):
    file = tmp_path / f"{machine.device_slug(torch.device('cpu'))}.csv"
    assert len(rows.read(file)) == len(FAKES)
    lost = dataclasses.replace(measured["good"], ms_p50=None, note="missing: not installed")
    wrong = dataclasses.replace(measured["eager"], ms_p50=None, note="wrong output")
    still = dataclasses.replace(measured["absent"], commit="0123456")  # says of a newer run that it is missing
    engines.keep(file, [lost, wrong, still])
    kept = {row.engine: row for row in rows.read(file)}
    assert kept["good"].ms_p50 is not None
    assert kept["eager"].ms_p50 is None
    assert kept["absent"].missing
    assert kept["absent"].commit == "0123456"


def test_of_two_graphs_the_faster_one_stands(measured: dict[str, Row]):
    def timed(engine: str, ms: float | None, note: str) -> Row:
        return dataclasses.replace(measured["good"], engine=engine, ms_p50=ms, note=note)

    eager, ours, wrong = timed("eager", 3.0, ""), "a" + engines.OWN_GRAPH, measured["wrong"].note
    for official, own, expected in (
        (1.0, 2.0, "x, on the official graph (our graph: 2 ms)"),
        (2.0, 1.0, "y, on our graph (the official graph: 2 ms)"),
        (2.0, None, f"x, on the official graph (our graph: {wrong})"),
    ):
        found = [eager, timed("a", official, "x"), timed(ours, own, "y" if own else wrong)]
        first, best = engines.on_its_best_graph(found)
        assert (first, best.engine, best.ms_p50, best.note) == (eager, "a", min(official, own or 9.0), expected)
    missing = [timed("a", None, "missing: it is not here"), timed(ours, None, "missing: it is not here")]
    assert engines.on_its_best_graph(missing) == missing[:1]


def test_engines_that_are_given_a_graph_run_with_both():
    found = engines.with_our_graph(peers.ENGINES)
    both = [name for name in peers.ENGINES if name + engines.OWN_GRAPH in found]
    assert both == [name for name in peers.ENGINES if name.startswith(("onnxruntime", "openvino", "mnn"))]
    assert list(engines.with_our_graph(["onnxruntime"])) == ["onnxruntime", "onnxruntime on our graph"]


def test_beside_neighbours(monkeypatch: pytest.MonkeyPatch):
    """One case beside 0 and 2 processes: they live while it is timed, and no longer."""
    subject = Subject("hifuse_tiny", torch.nn.Linear(1, 1), torch.zeros(2, 3, 8, 8), EXACT, multiply_adds=10**9)
    alive: list[list[int]] = []
    begun: list[int] = []
    start = engines.subprocess.Popen

    def popen(*args, **named):
        process = start(*args, **named)
        if engines.NEIGHBOUR in args[0]:
            begun.append(process.pid)
        return process

    def interleave(calls, **_):
        alive.append([pid for pid in begun if Path(f"/proc/{pid}").exists()])
        return timing.interleave(calls, budget_s=0)

    monkeypatch.setattr(engines.subprocess, "Popen", popen)
    monkeypatch.setattr(engines, "timing", SimpleNamespace(interleave=interleave))
    bench = engines.Bench({"eager": FAKES["eager"]}, FakeRunner, 0.0, lambda text: None, (0, 2))
    task = Task("hifuse_tiny", Path(), np.zeros(2), torch.float32, 1)
    found = bench.measure(subject, task, "float32", EXACT.float(), 1e12)
    assert [(row.suite, row.mode) for row in found] == [("busy", "0 neighbours"), ("busy", "2 neighbours")]
    assert alive == [[], begun]
    assert not any(Path(f"/proc/{pid}").exists() for pid in begun)


def test_an_engine_that_dies_in_its_turn_is_left_out(monkeypatch: pytest.MonkeyPatch):
    class Dying(FakeRunner):
        def __call__(self) -> None:
            super().__call__()
            if self.name == "good" and LOG.count("call good") == 2:
                raise FailedError("its process ended with exit code -9")

    LOG.clear()
    news: list[str] = []
    subject = Subject("hifuse_tiny", torch.nn.Linear(1, 1), torch.zeros(2, 3, 8, 8), EXACT, multiply_adds=10**9)
    bench = engines.Bench({name: FAKES[name] for name in ("eager", "good")}, Dying, 0.0, news.append)
    task = Task("hifuse_tiny", Path(), np.zeros(2), torch.float32, 1)
    eager, good = bench.measure(subject, task, "float32", EXACT.float(), 1e12)
    assert eager.ms_p50 is not None
    assert good.ms_p50 is good.ratio is good.peak_mib is None
    assert good.note == "failed: its process ended with exit code -9"
    assert news[-1] == f"  good: {good.note}"
    assert LOG[-2:] == ["close good", "close eager"]


def test_float32_must_name_the_same_class():
    exact = torch.tensor([[1.0, 1.00001, 0.0]], dtype=torch.float64)
    swapped = exact.float()[:, [1, 0, 2]]

    class Swapped(FakeRunner):
        def wait(self) -> Ready:
            return Ready(swapped.numpy(), 1.0, 1.0, 1.0, "")

    runner = Swapped(FAKES["good"], Task("hifuse_tiny", Path(), np.zeros(1), torch.float32, 1))
    outcome = engines.get_ready(runner, exact.float(), exact)
    assert not outcome.ok
    assert "top-1 0/1, wrong class" in outcome.note
    assert engines.get_ready(runner, exact.bfloat16(), exact).ok  # a tie within its rounding


def run_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> tuple[list[Row], list[Row], list[Task]]:
    """The rows of a run of int8 alone, those that it wrote, and its tasks."""
    subject = Subject("hifuse_tiny", torch.nn.Linear(1, 1), torch.zeros(2, 3, 8, 8), EXACT, multiply_adds=10**9)
    monkeypatch.setattr(engines.network, "make_subject", lambda model, pixels: subject)
    monkeypatch.setattr(engines.network, "reference_logits", lambda network, pixels, dtype: EXACT.to(dtype))
    monkeypatch.setattr(engines.machine, "arithmetic_peak", lambda device, dtype: 1e12)
    monkeypatch.setattr(engines.machine, "usual_dtypes", lambda device: ("float32",))
    tasks = []

    class Runner(FakeRunner):
        def __init__(self, engine: Engine, task: Task) -> None:
            tasks.append(task)
            super().__init__(engine, task)

    chosen = {name: Engine(peers.eager, name.partition(" ")[0]) for name in names}
    with (tmp_path / "log").open("w") as log:
        found = engines.run(
            ["hifuse_tiny"], results=tmp_path, dtypes=("int8",), batch_sizes=(2,), engines=chosen, budget_s=0.0,
            start=Runner, console=Console(file=log, width=200),
        )  # fmt: skip
    return found, rows.read(tmp_path / f"{machine.device_slug(torch.device('cpu'))}.csv"), tasks


def test_int8_takes_turns_with_the_dtype_that_serves_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found, written, tasks = run_int8(tmp_path, monkeypatch, "eager", "good int8", "nan int8")
    assert [task.dtype for task in tasks] == [torch.float32, torch.int8, torch.int8]
    assert [(row.engine, row.dtype) for row in found] == [("eager", "float32"), ("good", "int8"), ("nan", "int8")]
    assert [(row.engine, row.dtype) for row in written] == [("good", "int8"), ("nan", "int8")]  # what was asked for
    good, wrong = found[1:]
    assert good.ratio is not None
    assert good.floor_share is None
    assert good.note.startswith("good 1.0, top-1 2/2, off by 0.0% of the logits' spread")
    assert (wrong.ms_p50, wrong.ratio) == (None, None)
    assert "wrong output" in wrong.note


def test_of_two_graphs_in_int8_the_faster_one_stands(measured: dict[str, Row]):
    pairs = [(engine, dtype) for dtype in ("float32", "int8") for engine in ("a", "a" + engines.OWN_GRAPH)]
    found = [
        dataclasses.replace(measured["good"], engine=engine, dtype=dtype, ms_p50=ms)
        for (engine, dtype), ms in zip(pairs, (1.0, 2.0, 4.0, 3.0), strict=True)
    ]
    assert [(row.engine, row.dtype, row.ms_p50) for row in engines.on_its_best_graph(found)] == [
        ("a", "float32", 1.0),
        ("a", "int8", 3.0),
    ]


def test_engines_in_int8_are_in_no_other_case(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engines.machine, "usual_dtypes", lambda device: ("float32", "bfloat16"))
    names = {"a": FAKES["eager"], "a int8": FAKES["good"]}
    for dtypes, expected in (
        (["float32", "bfloat16"], {"float32": ["a"], "bfloat16": ["a"]}),
        (["float32", "bfloat16", "int8"], {"float32": ["a"], "bfloat16": ["a", "a int8"]}),
        (["float32", "int8"], {"float32": ["a"], "bfloat16": ["a", "a int8"]}),
    ):
        assert {dtype: list(each) for dtype, each in engines.cases(dtypes, names).items()} == expected


@pytest.mark.parametrize(("share", "ok"), [(0.09, True), (0.11, False), (float("nan"), False)])
def test_int8_is_judged_by_the_spread_of_the_logits(share: float, ok: bool):
    spread = float((EXACT - EXACT.mean(1, keepdim=True)).square().mean().sqrt())
    signs = torch.tensor([[1.0, -1, 1], [-1, 1, -1]])
    assert engines.check_int8((EXACT + share * spread * signs).float(), EXACT).ok == ok


@pytest.mark.parametrize(("damage", "ok"), [(0.004, True), (0.05, False)])
def test_bfloat16_obeys_the_tolerance_rule(damage: float, ok: bool):
    class Near(FakeRunner):
        def wait(self) -> Ready:
            return Ready((EXACT.float() * (1 + damage)).numpy(), 1.0, None, None, "")

    runner = Near(FAKES["good"], Task("hifuse_tiny", Path(), np.zeros(2), torch.bfloat16, 1))
    assert engines.get_ready(runner, EXACT.bfloat16(), EXACT).ok == ok


# Options


def test_options_choose_and_refuse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    seen = {}
    monkeypatch.setattr(engines, "run", lambda models, **given: seen.update(models=models, **given) or [])
    arguments = ["--models", "hifuse_base,hifuse_tiny", "--batch", "1,32", "--dtypes", "bfloat16", "--engines", "eager"]
    assert CliRunner().invoke(engines.main, [*arguments, "--budget", "3", "--output", str(tmp_path)]).exit_code == 0
    assert set(seen["models"]) == {"hifuse_base", "hifuse_tiny"}
    assert (seen["batch_sizes"], seen["dtypes"], list(seen["engines"])) == ([1, 32], ["bfloat16"], ["eager"])
    assert (seen["budget_s"], seen["results"]) == (3.0, tmp_path)
    assert seen["neighbours"] is None
    assert CliRunner().invoke(engines.main, ["--neighbours", "2,0,1"]).exit_code == 0
    assert seen["neighbours"] == [0, 1, 2]
    for bad in (
        ["--neighbours", "-1"],
        ["--models", "hifuse_huge"],
        ["--batch", "0"],
        ["--dtypes", "int4"],
        ["--engines", "eager,fast"],
        ["--engines", "eager,hifuse_fast", "--dtypes", "int8"],
        ["--dtypes", "float32", "--engines", "hifuse_fast int8"],
    ):
        result = CliRunner().invoke(engines.main, bad)
        assert result.exit_code == 2
        assert bad[0] in result.output
    assert options.names("--engines", "c, a", "abc") == ["a", "c"]


def test_the_exit_code_tells_of_failures_and_not_of_missing_engines(monkeypatch: pytest.MonkeyPatch, measured: dict[str, Row]):
    monkeypatch.setattr(engines, "run", lambda models, **given: [measured["eager"], measured["absent"]])
    assert CliRunner().invoke(engines.main, []).exit_code == 0
    monkeypatch.setattr(engines, "run", lambda models, **given: list(measured.values()))
    result = CliRunner().invoke(engines.main, [])
    assert result.exit_code == 1
    assert "wrong hifuse_tiny float32 batch 2; nan" in result.output


# The pages


@pytest.fixture
def small(measured: dict[str, Row]) -> list[Row]:
    """Small in two dtypes: eager takes 300 ms, the product 100, one engine is missing."""
    times = {"eager": 300.0, "absent": None, "hifuse_fast": 100.0}
    shared = {"case": "hifuse_small", "date": "2026-01-02T03:04:05Z"}
    return [
        dataclasses.replace(
            measured["absent" if ms is None else "good"],
            **shared,
            **{"engine": engine, "dtype": dtype, "ms_p20": ms, "ms_p50": ms, "ms_p80": ms},
        )
        for dtype in ("float32", "bfloat16")
        for engine, ms in times.items()
    ]


def test_the_engines_table(small: list[Row]):
    page = pages.engines(small)
    head, _, eager, absent, product = page.splitlines()[:5]
    assert "| hifuse_fast is | ready s | peak MiB |" in head
    assert eager.startswith("| hifuse_small | eager | float32 | 2 | 300 / 300 / 300 |")
    assert "| 3.00x | 4.00 | 100 |" in eager
    assert "| - |" in absent
    assert "missing: absent" in absent
    assert "| 1.00x |" in product
    assert pages.engines([]) == pages.engines_summary([]) == "Not measured yet.\n"


def test_the_engines_summary(small: list[Row]):
    other = dataclasses.replace(small[0], case="hifuse_base", engine="never shown")
    alone = dataclasses.replace(small[0], batch=32)  # of a batch size that the product has no row of
    page = pages.engines_summary([*small, other, alone])
    assert page.splitlines()[:5] == [
        "| ms/image | float32, batch 2 | bfloat16, batch 2 |",
        "| --- | --- | --- |",
        "| eager | 300 (3.00x) | 300 (3.00x) |",
        "| absent | - | - |",
        "| hifuse_fast | 100 | 100 |",
    ]


def test_times_of_different_runs_are_not_compared(small: list[Row]):
    eager, product = small[0], dataclasses.replace(small[2], date="2026-01-02T09:09:09Z")
    assert table.advantage(eager, small) == 3.0
    assert table.advantage(eager, [eager, product]) is None
    assert table.advantage(small[1], small) is None
