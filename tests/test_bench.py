"""The bench harness: timing in turns, rows, machine, samples, the network bench's verdict, and the pages' tables."""

from __future__ import annotations

import dataclasses
import itertools
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch import Tensor

from benchmarks import prepared_ops, readme, turns
from benchmarks import window_attention as op_bench
from hifuse_fast import OptimizedHiFuse, create_model
from hifuse_fast.bench import machine, network, plot, rows, samples, table, timing
from hifuse_fast.bench.rows import Row

CPU = torch.device("cpu")


@pytest.fixture
def row() -> Row:
    return Row(
        date="2026-01-02T03:04:05Z", commit="abc", package="0.1.0", torch="2.13.0", python="3.11.7", device="box-2c", threads=2,
        isa="avx2", suite="network", case="hifuse_tiny", engine="hifuse_fast", dtype="float32", batch=1, mode="inference",
        per="image", ms_p20=99.0, ms_p50=123.456789, ms_p80=150.0, images_per_s=8.1, gflop_per_s=None, gb_per_s=None, ratio=1.5,
        floor_share=0.5, peak_mib=100.0, error=1e-7, note="top-1 1/1",
    )  # fmt: skip


# Timing


class Clock:
    """A clock that only the calls move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order = ""

    def call(self, name: str, *seconds: float):
        durations = itertools.cycle(seconds)

        def work() -> None:
            self.order += name
            self.now += next(durations)

        return work

    def __call__(self) -> float:
        return self.now


def test_interleave_rotates_the_order_and_spends_the_budget():
    clock = Clock()
    calls = {name: clock.call(name, 1.0) for name in "ABC"}
    found = timing.interleave(calls, budget_s=11.0, min_rounds=1, warmup=1, clock=clock)
    assert (
        clock.order == "ABC" + "ABC" + "BCA" + "CAB" + "ABC"
    )  # the warm-up first; the round that began before 11 s is finished
    assert found["A"] == timing.Timing(1.0, 1.0, 1.0, calls=4)


def test_interleave_runs_the_least_and_the_most_rounds():
    clock = Clock()
    assert timing.interleave({"A": clock.call("A", 5.0)}, budget_s=0.0, min_rounds=4, warmup=0, clock=clock)["A"].calls == 4
    assert timing.interleave({"A": clock.call("A", 0.0)}, budget_s=9.0, max_rounds=6, warmup=0, clock=clock)["A"].calls == 6


def test_interleave_gives_quantiles():
    clock = Clock()
    seconds = [5.0, 0.0, 3.0, 1.0, 4.0, 2.0]
    found = timing.interleave({"A": clock.call("A", *seconds)}, budget_s=0.0, min_rounds=6, warmup=0, clock=clock)["A"]
    assert (found.p20, found.p50, found.p80) == pytest.approx((1.0, 2.5, 4.0))


def test_interleave_waits_for_the_device_within_the_time():
    clock = Clock()
    found = timing.interleave(
        {"A": clock.call("A", 1.0)}, budget_s=0.0, warmup=0, synchronize=clock.call("s", 10.0), clock=clock
    )  # fmt: skip
    assert clock.order == "sAs" * 3
    assert found["A"].p50 == 11.0  # the wait after the call, not the one before


def test_interleave_rests_before_each_call(monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    monkeypatch.setattr(timing.time, "sleep", lambda seconds: clock.call("z", seconds)())
    found = timing.interleave({"A": clock.call("A", 1.0)}, budget_s=0.0, warmup=0, rest_s=5.0, clock=clock)
    assert clock.order == "zA" * 3
    assert found["A"].p50 == 1.0


def test_interleave_tells_its_progress():
    clock, told = Clock(), []
    timing.interleave({"A": clock.call("A", 1.0)}, budget_s=4.0, warmup=0, clock=clock, on_round=told.append)
    assert told == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("options", [{"budget_s": -1.0}, {"budget_s": float("nan")}, {"budget_s": 1.0, "min_rounds": 0}])
def test_interleave_refuses(options: dict):
    with pytest.raises(ValueError, match="must be"):
        timing.interleave({"A": lambda: None}, **options)
    with pytest.raises(ValueError, match="calls"):
        timing.interleave({}, budget_s=1.0)


# Rows


def test_rows_come_back_rounded(tmp_path: Path, row: Row):
    file = tmp_path / "new" / "box.csv"
    rows.write(file, [row])
    assert rows.read(file) == [dataclasses.replace(row, ms_p50=123.5)]
    assert rows.read(tmp_path / "absent.csv") == []


def test_a_new_row_replaces_the_one_of_its_case(tmp_path: Path, row: Row):
    file = tmp_path / "box.csv"
    other = dataclasses.replace(row, engine="reference")
    rows.update(file, [row, other])
    newer = dataclasses.replace(row, date="2026-02-02T00:00:00Z", ms_p50=50.0)
    threads = dataclasses.replace(row, threads=1)
    assert rows.update(file, [newer, threads]) == [newer, dataclasses.replace(other, ms_p50=123.5), threads]
    assert [r.ms_p50 for r in rows.read(file)] == [50.0, 123.5, 123.5]


@pytest.mark.parametrize(
    "change", [{"suite": "x"}, {"case": "x"}, {"engine": "x"}, {"dtype": "x"}, {"batch": 2}, {"mode": "x"}, {"threads": 1}]
)
def test_every_part_of_the_key_keeps_rows_apart(row: Row, change: dict):
    assert len(rows.merge([row], [dataclasses.replace(row, **change)])) == 2


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, row: Row):
    file = tmp_path / "box.csv"
    rows.write(file, [row])
    before = file.read_bytes()

    def broken():
        yield row
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        rows.write(file, broken())
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace("date,", "when,"), "must begin with the columns"),
        (lambda text: "", "must begin with the columns"),
        (lambda text: text.replace("123.5", "fast"), "line 2: ms_p50 must be a number, got 'fast'"),
        (lambda text: text.rstrip().rpartition(",")[0], "line 2: expected"),
        (lambda text: text + '"', "is not a CSV file"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, row: Row, damage, message: str):
    file = tmp_path / "box.csv"
    rows.write(file, [row])
    file.write_text(damage(file.read_text()))
    with pytest.raises(ValueError, match=message) as caught:
        rows.read(file)
    assert str(file) in str(caught.value)


def test_figures():
    timed, reference = timing.Timing(0.1, 0.2, 0.4, 3), timing.Timing(0.3, 0.5, 0.6, 3)
    found = rows.figures(timed, reference, batch=8, calls=8, flop=4e9, floor_s=0.05, moved=1e9)
    assert found == pytest.approx(
        {"ms_p20": 12.5, "ms_p50": 25.0, "ms_p80": 50.0, "images_per_s": 40.0, "gflop_per_s": 20.0, "gb_per_s": 5.0,
         "ratio": 2.5, "floor_share": 0.25}
    )  # fmt: skip
    assert set(rows.figures(None, reference, batch=8, calls=8, flop=1.0, floor_s=1.0).values()) == {None}


# The machine


@pytest.mark.parametrize(
    ("cpu", "slug"),
    [
        (("AuthenticAMD", "AMD EPYC", 25, 17), "amd-epyc-zen4-{}c"),
        (("AuthenticAMD", "AMD EPYC 7763 64-Core Processor", 25, 1), "amd-epyc-7763-zen3-{}c"),
        (("GenuineIntel", "Intel(R) Xeon(R) Gold 6430 CPU @ 2.1GHz", 6, 143), "intel-xeon-gold-6430-sapphire-rapids-{}c"),
        (("GenuineIntel", "Intel(R) New", 6, 999), "intel-new-family6-model999-{}c"),
    ],
)
def test_the_slug_of_a_cpu(tmp_path: Path, cpu: tuple[str, str, int, int], slug: str):
    vendor, name, family, model = cpu
    cpuinfo = tmp_path / "cpuinfo"
    one = f"vendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: {name}\nmicrocode\t:\n"
    cpuinfo.write_text(f"{one}\n{one}")
    assert machine.device_slug(CPU, cpuinfo) == slug.format(machine.usable_cores())


def test_the_slug_without_cpuinfo(tmp_path: Path):
    assert machine.device_slug(CPU, tmp_path / "absent").endswith(f"-{machine.usable_cores()}c")


def test_outside_a_checkout_the_commit_is_unknown(tmp_path: Path):
    assert machine.commit(tmp_path) == "unknown"


def test_peak_memory_sees_what_a_call_allocates_and_frees():
    def call() -> Tensor:
        return torch.ones(2**24) + 1  # two tensors of 64 MiB

    found = [machine.peak_memory(call, CPU) for _ in range(2)]  # the second time from the allocator's own store, if it has one
    if None in found:
        pytest.skip("this system does not tell")
    assert found == pytest.approx([128.0, 128.0], abs=16.0)


def cpu_seconds(monkeypatch: pytest.MonkeyPatch, *values: tuple[float, float, float] | None) -> machine.Neighbours:
    told = iter(values)
    monkeypatch.setattr(machine, "_cpu_seconds", lambda own: next(told))
    with machine.Neighbours() as neighbours:
        pass
    return neighbours


def test_neighbours_are_noted_and_told(monkeypatch: pytest.MonkeyPatch, row: Row):
    found = cpu_seconds(monkeypatch, (100.0, 50.0, 10.0), (120.0, 68.0, 22.0))  # of 20 s we used 12, others 6
    assert found.share == pytest.approx(0.3)
    assert found.note == "others took 30 % of the CPU"
    assert cpu_seconds(monkeypatch, (100.0, 50.0, 10.0), (120.0, 62.0, 22.0)).note == ""
    assert cpu_seconds(monkeypatch, None, None).note == ""
    assert table.busy([row, dataclasses.replace(row, note=found.note)]).startswith("1 of 2 rows")
    assert table.busy([row]) == ""


def test_a_busy_neighbour_is_seen():
    if machine._cpu_seconds() is None:
        pytest.skip("this system does not tell")
    code = "while True: pass"
    spinning = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(machine.usable_cores())]
    try:
        time.sleep(0.3)  # until the interpreters run
        with machine.Neighbours() as neighbours, machine.Neighbours([process.pid for process in spinning]) as helpers:
            time.sleep(0.5)
    finally:
        for process in spinning:
            process.kill()
            process.wait()
    assert neighbours.share is not None
    assert helpers.share is not None
    assert neighbours.share > 0.5
    assert helpers.share < neighbours.share - 0.2  # there may be other neighbours


def test_the_machine_has_limits():
    assert machine.arithmetic_peak(CPU, torch.float32, budget_s=0.0) > 1e8
    assert machine.copy_bandwidth(CPU, budget_s=0.0) > 1e7


def test_multiply_adds_of_tiny():
    assert network.multiply_adds("hifuse_tiny") == pytest.approx(17.4e9 + 0.11e9, rel=0.005)  # and the attention's products


# Samples


def test_samples_need_no_network(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket, "socket", None)
    names, pixels = samples.load(6)
    assert [name.split("[")[0] for name in names] == ["retina", "ihc"] * 3
    assert len(set(names)) == 6
    assert pixels.shape == (6, 3, 224, 224)
    assert pixels.dtype == torch.float32
    assert -1 <= pixels.min() < -0.5 < 0.5 < pixels.max() <= 1
    assert pixels.std((1, 2, 3)).min() > 0.05  # none is a black corner
    assert samples.load(6)[1].equal(pixels)


def test_samples_start_again_when_all_are_used():
    names, _ = samples.load(41)
    assert len(set(names)) == 40
    assert names[40] == names[0]


def test_a_folder_comes_first_and_loses_only_the_unreadable(tmp_path: Path):
    from PIL import Image

    Image.new("RGB", (300, 260), (255, 255, 255)).save(tmp_path / "white.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"bad\.png"):
        names, pixels = samples.load(3, tmp_path)
    assert names[0] == "white.png"
    assert names[1].startswith("retina")
    assert pixels[0].eq(1).all()


def test_no_images_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(samples.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="install scikit-image"):
        samples.load(1)
    with pytest.raises(FileNotFoundError, match="absent"):
        samples.load(1, tmp_path / "absent")


# The network bench


def test_the_fast_engine_is_the_frozen_network_where_that_serves():
    model = create_model("hifuse_tiny", num_classes=3).eval()
    assert isinstance(network.fast_engine(model), OptimizedHiFuse)
    assert not isinstance(network.fast_engine(model.half()), OptimizedHiFuse)


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


def test_a_wrong_engine_gets_no_time(tmp_path: Path):
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
    monkeypatch.setitem(prepared_ops.STAGES, 4, (3, 32))
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
        (f"{name} 7x7x2304", 3, dtype) for name in ("mixer", "mlp") for dtype in ("float32", "bfloat16")
    ]
    assert "--ops must be of linear_qkv," in call("--ops", "stem").output


# The pages


PAGE = "# Title\n\n<!-- results:network -->\nold\n<!-- /results -->\n\ntext\n"


@pytest.fixture
def checkout(tmp_path: Path, row: Row) -> Path:
    (tmp_path / "README.md").write_text(PAGE)
    rows.write(tmp_path / readme.RESULTS / "box.csv", [row, dataclasses.replace(row, engine="wrong", ms_p50=None)])
    return tmp_path


def test_readme_is_rewritten_and_checked(checkout: Path):
    def call(*arguments: str):
        return CliRunner().invoke(readme.main, ["--root", str(checkout), *arguments])

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
    result = CliRunner().invoke(readme.main, ["--root", str(checkout)])
    assert result.exit_code == 1
    assert "block" in result.output
    assert (checkout / "README.md").read_text() == page


def test_the_op_tables_show_the_worst_case(row: Row):
    cases = [
        dataclasses.replace(row, suite="window_attention", mode="forward", case=case, engine=engine, ms_p50=ms)
        for case, times in {"a": (9.0, 3.0), "b": (4.0, 2.0), "c": (5.0, 1.0)}.items()
        for engine, ms in zip(("reference", "native"), times, strict=True)
    ]
    assert "| forward | float32 | reference | 2.00x | 3.00x | 5.00x | 3 |" in readme.window_attention_summary(cases)
    assert "| a | 1 | float32 | forward | 9.00 | 3.00 | 3.00x | 50 % |" in readme.window_attention(cases)
    assert readme.network(cases) == "Not measured yet.\n"
    prepared = [dataclasses.replace(case, suite="prepared_ops") for case in cases]
    assert "| a | 1 | float32 | 9.00 | 3.00 | 3.00x | 50 % |" in readme.prepared_ops(prepared)
