"""What the harness runs and writes: the verdict of the network bench, the benches of ops, and the pages' tables."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch import Tensor

from benchmarks import prepared_ops
from benchmarks import window_attention as op_bench
from hifuse_fast import BackendError, OptimizedHiFuse, create_model
from hifuse_fast.bench import cuda, machine, network, plot, rows, table, turns
from hifuse_fast.bench.rows import Row
from tools import pages

CPU = torch.device("cpu")


# The network bench


def test_the_fast_engine_is_the_frozen_network_where_that_serves():
    model = create_model("hifuse_tiny", num_classes=3).eval()
    assert isinstance(network.fast_engine(model), OptimizedHiFuse)
    assert not isinstance(network.fast_engine(model.half()), OptimizedHiFuse)


def test_the_fast_engine_says_where_it_could_not_freeze(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise BackendError("no such kernels")

    monkeypatch.setattr("hifuse_fast.inference.serve.optimize_for_inference", refuse)
    model = create_model("hifuse_tiny", num_classes=3).eval()
    with pytest.warns(UserWarning, match="not frozen for inference, which would be faster: no such kernels"):
        assert network.fast_engine(model) is model


def test_on_a_gpu_calls_are_timed_by_events(monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(cuda, "EventTimer", lambda device: lambda call: asked.append(call()) or 0.25)
    with network._Bar(Console(quiet=True), 1, 0.0) as bar:
        assert network._time({"a": lambda: 7}, torch.device("cuda", 0), bar)["a"].p50 == 0.25
    assert asked == [7] * 3
    assert cuda.timer(CPU) is None


def test_check_logits_refuses_what_is_wrong():
    exact = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.2, 0.1]], dtype=torch.float64)
    good = exact.float()
    assert network.check_logits(good, good, exact).ok
    assert network.check_logits(good + 1.9e-4, good, exact).ok
    assert not network.check_logits(good + 2.1e-4, good, exact).ok
    assert not network.check_logits(good * float("nan"), good, exact).ok
    half = exact.bfloat16()
    assert network.check_logits(half, half, exact).ok
    assert not network.check_logits(half + 0.05, half, exact).ok
    assert network.check_logits(good.flip(1), good, exact).note == "top-1 0/2, wrong output"


def run_tiny(tmp_path: Path, **options) -> tuple[int, str]:
    console = Console(record=True, width=140, quiet=False, file=(tmp_path / "log").open("w"))
    code = network.run(
        "hifuse_tiny", results=tmp_path, batch_sizes=(1,), dtypes=("float32",), devices=("cpu",), budget_s=0.0, console=console,
        **options,
    )  # fmt: skip
    return code, console.export_text()


def test_a_wrong_engine_gets_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    narrow = {"dims": (8, 16, 24, 32), "num_heads": (1, 2, 3, 4)}
    monkeypatch.setattr(network, "create_model", partial(create_model, **narrow))

    def broken(module):
        forward = network.backend_engine("reference")(module)
        return lambda images: forward(images) * 1.001

    code, text = run_tiny(tmp_path, engines={**network.ENGINES, "broken": broken})
    assert code == 1
    found = {row.engine: row for row in rows.read(tmp_path / f"{machine.device_slug(CPU)}.csv")}
    assert [found[name].ms_p50 is None for name in ("reference", "hifuse_fast", "broken")] == [False, False, True]
    assert found["reference"].ratio == 1.0
    assert found["hifuse_fast"].error < 1e-5
    assert found["broken"].error == pytest.approx(1e-3, rel=0.01)
    assert found["broken"].ratio is found["broken"].images_per_s is found["broken"].peak_mib is None
    assert "FAILED" in text
    for suffix in (".png", ".svg"):
        assert (tmp_path / f"{machine.device_slug(CPU)}{suffix}").stat().st_size > 10_000


def test_a_damaged_results_file_is_found_before_the_work(tmp_path: Path):
    (tmp_path / f"{machine.device_slug(CPU)}.csv").write_text("nonsense\n")
    with pytest.raises(ValueError, match="must begin with the columns"):
        run_tiny(tmp_path, engines={})


@pytest.mark.parametrize(
    "bad",
    [
        {"model": "hifuse_huge"},
        {"batch_sizes": (0,)},
        {"batch_sizes": ()},
        {"dtypes": ("int8",)},
        {"devices": ("tpu",)},
        {"threads": 0},
        {"threads": 10**6},
        {"budget_s": -1.0},
    ],
)
def test_bad_arguments_are_named(bad: dict):
    (name,) = bad
    with pytest.raises(ValueError, match=name):
        network.run(**{"results": None, **bad})


def test_plot_without_a_timed_row_draws_nothing(tmp_path: Path, row: Row):
    assert plot.network([dataclasses.replace(row, ms_p50=None)], tmp_path / "box.csv") == []


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.01234, "0.012"), (1.2345, "1.23"), (12.345, "12.3"), (1234.5, "1234"), (0.0, "0.000")]
)
def test_number(value: float | None, text: str):
    assert table.number(value) == text


# The op's benchmark


@pytest.mark.parametrize("mode", op_bench.MODES)
@pytest.mark.parametrize("shift", [0, 3])
def test_sdpa_is_an_honest_peer(mode: str, shift: int):
    case = op_bench.Case(stage=3, shift=shift, batch=2, dtype="float32", mode=mode)
    inputs = op_bench.make_inputs(case, CPU)
    ok, error = op_bench.check(case, inputs, op_bench.build_sdpa(case, inputs))
    assert ok, error


def test_the_op_bench_does_not_time_a_wrong_engine(monkeypatch: pytest.MonkeyPatch):
    case = op_bench.Case(stage=4, shift=3, batch=1, dtype="float32", mode="forward+backward")
    other = dataclasses.replace(case, shift=2)
    monkeypatch.setitem(op_bench.ENGINES, "broken", lambda _, inputs: op_bench.ENGINES["reference"](other, inputs))
    limits = turns.Limits({"float32": 1e12}, 1e11)
    reference, broken = op_bench.measure(case, ["reference", "broken"], CPU, limits=limits, budget_s=0.0)
    assert reference.ms_p50 is not None
    assert broken.ms_p50 is None
    assert broken.note.startswith("wrong output")


def test_flop_and_bytes_of_the_op():
    case = op_bench.Case(stage=1, shift=0, batch=1, dtype="float32", mode="forward")
    assert case.flop == 2 * 2 * 64 * 3 * 49 * 49 * 32  # two products, 64 windows, 3 heads
    assert case.moved == 4 * (56 * 56 * 4 * 96 + 169 * 3)


def test_flop_and_bytes_of_a_prepared_op():
    case = prepared_ops.Case("mixer", stage=3, batch=2, dtype="bfloat16")
    assert case.name == "mixer 14x14x1152"
    assert case.flop == 2 * 2 * 14 * 14 * 9 * 1152**2  # of the direct convolution, whatever the algorithm
    assert case.moved == 2 * (2 * 2 * 14 * 14 * 1152 + 9 * 1152**2)
    case = prepared_ops.Case("mlp", stage=1, batch=1, dtype="float32")
    assert case.moved == 4 * (56 * 56 * (288 + 2 * 96) + 1152 * (288 + 96) + 1152 + 96)


@pytest.mark.parametrize("name", prepared_ops.NAMES)
def test_the_bench_of_prepared_ops_does_not_time_a_wrong_engine(name: str, monkeypatch: pytest.MonkeyPatch):
    def prepare(op: prepared_ops.Op, weights: dict[str, Tensor], dtype: torch.dtype, backend: str):
        if backend == "broken":
            weights = {name: 1.001 * weight for name, weight in weights.items()}
        return plain(op, weights, dtype, "reference")

    plain = prepared_ops.Op.prepare
    monkeypatch.setattr(prepared_ops.Op, "prepare", prepare)
    monkeypatch.setattr(prepared_ops, "ENGINES", ("reference", "broken"))
    monkeypatch.setattr(prepared_ops, "STAGES", {4: (3, 32, 1)})
    case = prepared_ops.Case(name, stage=4, batch=1, dtype="float32")
    limits = turns.Limits({"float32": 1e12}, 1e11)
    reference, broken = prepared_ops.measure(case, limits=limits, budget_s=0.0)
    assert reference.ms_p50 is not None
    assert broken.ms_p50 is None
    assert broken.note.startswith("wrong output")


def test_the_bench_of_prepared_ops_chooses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    measured = []
    monkeypatch.setattr(prepared_ops, "measure", lambda case, **_: measured.append(case) or [])
    monkeypatch.setattr(turns, "limits", lambda _: None)
    monkeypatch.setattr(turns, "require_native", lambda *_: None)
    monkeypatch.setattr(turns, "report", lambda *_: None)

    def call(*arguments: str):
        return CliRunner().invoke(prepared_ops.main, ["--output", str(tmp_path), *arguments])

    assert call("--ops", "mlp,mixer", "--stages", "4", "--batch", "3").exit_code == 0
    assert [(case.name, case.batch, case.dtype) for case in measured] == [
        (f"{name} 7x7x2304", 3, dtype) for name in ("mixer", "mlp") for dtype in machine.usual_dtypes(CPU)
    ]
    assert "--ops must be of linear_qkv," in call("--ops", "stem").output


# The pages


PAGE = "# Title\n\n<!-- results:network -->\nold\n<!-- /results -->\n\ntext\n"


@pytest.fixture
def checkout(tmp_path: Path, row: Row) -> Path:
    (tmp_path / "README.md").write_text(PAGE)
    rows.write(tmp_path / pages.RESULTS / "box.csv", [row, dataclasses.replace(row, engine="wrong", ms_p50=None)])
    return tmp_path


def test_readme_is_rewritten_and_checked(checkout: Path):
    def call(*arguments: str):
        return CliRunner().invoke(pages.main, ["--root", str(checkout), *arguments])

    stale = call("--check")
    assert stale.exit_code == 1
    assert "stale" in stale.output
    assert (checkout / "README.md").read_text() == PAGE
    assert call().exit_code == 0
    page = (checkout / "README.md").read_text()
    assert "| hifuse_tiny | hifuse_fast | float32 | 1 | 99.0 / 124 / 150 |" in page  # of 123.5 the even neighbour
    assert "FAILED" in page
    assert "box-2c, 2 threads, avx2; hifuse_fast 0.1.0 at abc, torch 2.13.0, Python 3.11.7; 2026-01-02" in page
    assert page.startswith("# Title\n")
    assert page.endswith("\ntext\n")
    assert "old" not in page
    assert call("--check").exit_code == 0


@pytest.mark.parametrize(
    "page",
    [PAGE.replace("network", "weather"), PAGE.replace("<!-- /results -->", ""), PAGE.replace("<!-- results:network -->", "")],
)
def test_a_page_with_a_bad_block_is_refused(checkout: Path, page: str):
    (checkout / "README.md").write_text(page)
    result = CliRunner().invoke(pages.main, ["--root", str(checkout)])
    assert result.exit_code == 1
    assert "block" in result.output
    assert (checkout / "README.md").read_text() == page


def test_the_op_tables_show_the_worst_case(row: Row):
    cases = [
        dataclasses.replace(row, suite="window_attention", mode="forward", case=case, engine=engine, ms_p50=ms)
        for case, times in {"a": (9.0, 3.0), "b": (4.0, 2.0), "c": (5.0, 1.0)}.items()
        for engine, ms in zip(("reference", "native"), times, strict=True)
    ]
    assert "| forward | float32 | reference | 2.00x | 3.00x | 5.00x | 3 |" in pages.window_attention_summary(cases)
    assert "| a | 1 | float32 | forward | 9.00 | 3.00 | 3.00x | 50 % |" in pages.window_attention(cases)
    assert pages.network(cases) == "Not measured yet.\n"
    prepared = [dataclasses.replace(case, suite="prepared_ops") for case in cases]
    assert "| a | 1 | float32 | 9.00 | 3.00 | 3.00x | 50 % |" in pages.prepared_ops(prepared)


def engine_rows(row: Row, **times: float) -> list[Row]:
    names = {"channels_last": "eager channels_last", "compiled": "torch.compile", "openvino": "openvino latency"}
    engines = {names.get(name, name): ms for name, ms in times.items()}
    common = {"suite": "engines", "case": pages.MODEL, "mode": "inference"}
    return [dataclasses.replace(row, engine=engine, ms_p50=ms, **common) for engine, ms in engines.items()]


def test_the_summary_compares_with_pytorch_alone_at_its_best(row: Row):
    found = engine_rows(row, eager=9.0, channels_last=8.0, compiled=4.0, openvino=3.0, hifuse_fast=2.0)
    text = pages.summary(found)
    assert f"| {row.device} | {row.dtype} | {row.batch} | 8.00 | 4.00 | 2.00 | 2.00x |" in text
    assert "| 8.00 | - | 2.00 | 4.00x |" in pages.summary([each for each in found if each.engine != "torch.compile"])
    assert "openvino" not in text
    assert pages.summary([]) == pages.NOT_MEASURED


def test_the_summary_takes_the_newest_run_of_each_machine_and_dtype(row: Row):
    old = engine_rows(dataclasses.replace(row, date="2026-01-01T00:00:00Z", commit="old"), eager=9.0, hifuse_fast=3.0)
    new = engine_rows(dataclasses.replace(row, date="2026-01-02T00:00:00Z", commit="new"), eager=8.0, hifuse_fast=2.0)
    other = engine_rows(dataclasses.replace(row, device="other", commit="old"), eager=7.0, hifuse_fast=1.0)
    text = pages.summary([*new, *old, *other])
    assert text.count("\n") == 4
    assert "| 8.00 | - | 2.00 | 4.00x | 2 threads, avx2; torch 2.13.0; new, 2026-01-02 |" in text
    assert "| other |" in text


def test_rows_of_engines_on_our_own_graph_say_so(row: Row):
    assert pages.OWN_GRAPH_NOTE in pages.engines(engine_rows(row, openvino=3.0, hifuse_fast=2.0))
    assert pages.OWN_GRAPH_NOTE not in pages.engines(engine_rows(row, eager=3.0, hifuse_fast=2.0))
