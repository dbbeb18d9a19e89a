"""The bench harness: timing in turns, rows, machine, and samples."""

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
from torch import Tensor

from hifuse_fast.bench import machine, network, rows, samples, table, timing
from hifuse_fast.bench.rows import Row

CPU = torch.device("cpu")


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


@pytest.mark.parametrize(
    ("capability", "architecture", "device", "usual"),
    [
        ("AVX512", "x86_64", "cpu", ("float32", "bfloat16")),
        ("AVX2", "x86_64", "cpu", ("float32",)),
        ("DEFAULT", "AMD64", "cpu", ("float32",)),
        ("DEFAULT", "aarch64", "cpu", ("float32", "bfloat16")),
        ("AVX2", "x86_64", "cuda", ("float32", "bfloat16")),
    ],
)
def test_bfloat16_is_usual_where_pytorch_has_kernels_for_it(
    monkeypatch: pytest.MonkeyPatch, capability: str, architecture: str, device: str, usual: tuple[str, ...]
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(machine.platform, "machine", lambda: architecture)
    assert machine.usual_dtypes(torch.device(device)) == usual


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
