"""Tuning on a stand-in for a GPU: what is tried, what is left out, what is written, and where it goes on."""

from __future__ import annotations

import functools
import pickle
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch import Tensor

from hifuse_fast.backends import select, tables
from hifuse_fast.backends.cuda import library as cuda
from hifuse_fast.backends.record import recording
from hifuse_fast.backends.tables import Config
from hifuse_fast.tuning import calls, conformed, rank, table_file, tune, whole_calls
from hifuse_fast.tuning.calls import choose
from hifuse_fast.tuning.table_file import SWITCHES
from hifuse_fast.tuning.whole_calls import NETWORK_SWITCHES, block_calls, tuned_calls

KERNEL, KEY = "layer_norm_forward", "128"
PRESENT = {"elements": 4096, "num_warps": 4}
DEVICE = "Some GPU, 2026-01-02, torch 2.11.0, triton 3.6.0"


class Fake:
    """A GPU on which a candidate takes `1e-3 * cost(config)` seconds, and which remembers what was measured."""

    def __init__(self, cost=lambda config: config["elements"] / 4096) -> None:
        self.cost, self.measured = cost, []

    def results(self, case: tune.Case) -> list[Tensor]:
        config = self.config()
        if config.get("num_warps") == 16:
            raise RuntimeError("out of resource: shared memory\nmore")
        return [torch.full([3], 1.001 if config.get("num_warps") == 32 else 1.0)]

    def seconds(self, case: tune.Case) -> float:
        self.measured.append((case, self.config()))
        return 1e-3 * self.cost(self.config())

    def faults(self, case: tune.Case) -> list[str]:
        return ["spills 8 bytes"] if self.config()["elements"] == 512 else []

    def check(self) -> None:
        pass

    def config(self) -> Config:
        return tables.lookup(KERNEL, KEY, "sm_90")


def never() -> bool:
    return False


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the CUDA kernels were there, with those for sm_90a: calls of the meta device ask for no more."""
    monkeypatch.setattr(cuda, "lib", SimpleNamespace(mlp_sm90=None, mixer_sm90=None, build_info=lambda: {"cuda": "13.0"}))
    monkeypatch.setattr(cuda, "why_missing", None)


@functools.cache
def whole_plan() -> dict[tune.Key, list[tune.Case]]:
    """Within `with_cuda`; it takes seconds."""
    return tune.plan(tuned_calls(), "sm_90", ["bfloat16"], (64, 1))


@pytest.fixture
def cases() -> list[tune.Case]:
    (call,) = calls.choose("layer_norm norm1 56x56")
    return [tune.Case(call, batch, "bfloat16", "forward", "triton") for batch in (64, 1)]


def test_the_fastest_is_taken_and_the_broken_are_left_out_with_reasons(cases: list[tune.Case]) -> None:
    tried = [PRESENT, *({"elements": n, "num_warps": w} for n, w in [(2048, 4), (1024, 16), (1024, 32), (8192, 4)])]
    bench, before = Fake(), tables.lookup(KERNEL, KEY, "sm_90")
    found = tune.tune(KERNEL, cases, tried, bench, late=never)
    assert found.config == {"elements": 2048, "num_warps": 4}
    assert found.ratio == pytest.approx(0.5)
    assert [reason.partition(": R")[0].partition(": W")[0] for reason in found.left_out] == [str(tried[2]), str(tried[3])]
    assert found.left_out[0].endswith("RuntimeError: out of resource: shared memory")
    assert "WrongResultError: layer_norm norm1 56x56x96, batch 64" in found.left_out[1]
    assert [config["elements"] for _, config in bench.measured] == [4096, 4096, 2048, 2048, 8192]  # the hopeless one once
    assert tables.lookup(KERNEL, KEY, "sm_90") == before


def test_the_fastest_is_not_taken_if_it_spills(cases: list[tune.Case]) -> None:
    tried = [PRESENT, *({"elements": n, "num_warps": 4} for n in (512, 2048, 1024))]
    found = tune.tune(KERNEL, cases, tried, Fake(), late=never)
    assert found.config["elements"] == 1024
    assert [reason.partition("}: ")[2][4:] for reason in found.left_out] == [" of the time, but spills 8 bytes"]


def test_noise_does_not_replace_the_present(cases: list[tune.Case]) -> None:
    tried = [PRESENT, {"elements": 4060, "num_warps": 4}]
    assert tune.tune(KERNEL, cases, tried, Fake(), late=never).config == PRESENT


def test_a_lost_device_ends_it(cases: list[tune.Case]) -> None:
    class Lost(Fake):
        def check(self) -> None:
            raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        tune.tune(KERNEL, cases, [PRESENT, {"elements": 1, "num_warps": 16}], Lost(), late=never)


@pytest.mark.usefixtures("with_cuda")
def test_the_plan_has_every_configured_kernel_of_the_calls() -> None:
    keys = whole_plan()
    looked_up = {kernel for kernel, _ in keys}
    assert looked_up >= {f"{op}_{way}" for op in ("layer_norm", "concat_norm", "linear") for way in ("forward", "backward")}
    assert looked_up >= {"window_attention_forward", "window_attention_backward", "depthwise_norm_forward"}
    assert all(1 <= len(found) <= tune.MOST_CASES for found in keys.values())
    assert {case.mode for case in keys[KERNEL, KEY]} == {"forward"}
    assert {case.mode for case in keys["layer_norm_backward", KEY]} == {"forward+backward"}
    assert looked_up >= {"gates_statistics", "gates"}  # of the frozen network alone
    pickle.loads(pickle.dumps(list(keys.values())))  # other processes compile for them


@pytest.mark.usefixtures("with_cuda")
def test_ops_come_after_the_tiles_and_weigh_training_and_inference() -> None:
    keys = whole_plan()
    order = [(rank.is_choice(section), section in SWITCHES) for section, _ in keys]
    assert order == sorted(order, key=[(False, False), (False, True), (True, False)].index)
    assert [section.startswith("prepare_") for section, _ in keys if section in select.OPS] == sorted(
        (section.startswith("prepare_") for section, _ in keys if section in select.OPS), reverse=True
    )
    # A block is decided by its own calls, after its parts; and its calls decide nothing else.
    sections = [section for section, _ in keys]
    assert sections.index("prepare_global_block") > sections.index("prepare_linear")
    for (section, _), cases in keys.items():
        assert {case.call.op for case in cases} == {section} or not rank.is_choice(section)
    assert {section for section, _ in keys if rank.is_choice(section)} == set(select.OPS)
    found = keys["batch_norm", "16-bit 768 training gelu"]
    assert {(case.batch, case.mode) for case in found} == {(batch, mode) for batch in (64, 1) for mode in calls.MODES}
    assert {case.backend for case in found} == {"auto"}
    assert {case.backend for case in keys[KERNEL, KEY]} == {"triton"}


def test_an_algorithm_is_measured_with_many_images_and_with_one() -> None:
    """In calls that may take either; those that ask for it by name tune its kernels, and no backend is chosen for them."""
    keys = tune.plan(choose("prepare_mixer", tuned_calls()), "sm_90", ["bfloat16"], (64, 1))
    found = keys["mixer_winograd", "16-bit 576"]
    assert {(case.call.part, case.batch, case.backend) for case in found} >= {("dense", n, "triton") for n in (64, 1)}
    assert {case.call.part for case in keys["mixer_winograd_input", "16-bit 576"]} == {"winograd2"}
    assert {case.call.part for case in keys["prepare_mixer", "16-bit 576 dense"]} == {"dense"}


def test_every_kernel_of_the_tables_has_candidates() -> None:
    """Kernels for one architecture alone, by their name, stand in no other table, nor what sm_80 cannot do."""
    for architecture in tables.architectures():
        theirs = {kernel for kernel in tune.declared() if kernel.endswith("_sm90") and architecture != "sm_90"}
        theirs |= {"dependent_launches"} if architecture == "sm_80" else set()
        assert set(tune.declared()) - theirs == set(tables.table(architecture)) - set(select.OPS)


@pytest.mark.usefixtures("with_cuda")
def test_every_candidate_has_what_its_launcher_asks_for() -> None:
    """None of them fails for a name that is missing or unknown."""
    keys = whole_plan()
    first = {kernel: (key, cases[0]) for (kernel, key), cases in reversed(keys.items()) if not rank.is_choice(kernel)}
    known = [kernel for kernel in tune.declared() if not kernel.endswith("_sm90") or hasattr(cuda.lib, kernel)]
    assert len(first) >= len(known) - 1  # where every linear is fused, nothing is left to finish
    for kernel, (key, case) in first.items():
        for config in tune.candidates(kernel, tables.lookup(kernel, key, "sm_90")):
            with tables.override(kernel, config), recording("sm_90") as record:
                case.bind("meta")()
            assert record.launches or kernel in ("linear_forward", *NETWORK_SWITCHES)


def test_the_present_configuration_is_tried_first_and_once() -> None:
    found = tune.candidates(KERNEL, PRESENT)
    assert found[0] == PRESENT
    assert found.count(PRESENT) == 1
    assert len(found) == 12
    linear = tune.candidates("linear_forward", {"fused": 0})  # groups with parameters of their own
    assert {len(config) for config in linear} == {1, 7}


def run(tmp_path: Path, keys: dict[tune.Key, list[tune.Case]], **options) -> tuple[int, str]:
    console = Console(record=True, width=200, file=(tmp_path / "log").open("w"))
    settings = {"budget_s": 60.0, "jobs": 1, **options}
    left = tune.run(keys, "sm_90", Fake(), tmp_path / "sm_90.toml", DEVICE, console=console, **settings)
    return left, console.export_text()


def test_entries_are_written_one_by_one_and_the_rest_stays(tmp_path: Path, cases: list[tune.Case]) -> None:
    before = table_file.read(table_file.path("sm_90"))
    left, text = run(tmp_path, {(KERNEL, KEY): cases}, output=tmp_path / "copy")
    assert left == 0
    assert "layer_norm_forward 128: {'elements': 1024" in text
    for table in (tmp_path / "sm_90.toml", tmp_path / "copy" / "sm_90.toml"):
        after = table_file.read(table)
        entry = after[KERNEL].pop(KEY)
        assert (entry["elements"], entry["origin"]) == (1024, DEVICE)
        before[KERNEL].pop(KEY, None)
        assert after == before
    assert "# Tile sizes on sm_90" in (tmp_path / "sm_90.toml").read_text()


def test_what_is_written_is_read_again(tmp_path: Path, cases: list[tune.Case], monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a choice is measured with the tiles that were found before it."""
    reloaded = []
    monkeypatch.setattr(tables, "reload", lambda: reloaded.append(KEY))
    run(tmp_path, {(KERNEL, KEY): cases})
    assert reloaded == [KEY]


def test_what_was_measured_is_not_measured_again(tmp_path: Path, cases: list[tune.Case]) -> None:
    keys = {(KERNEL, KEY): cases, (KERNEL, "512"): cases}
    run(tmp_path, {(KERNEL, KEY): cases})
    table = tmp_path / "sm_90.toml"
    assert list(tune.pending(keys, table, DEVICE.replace("01-02", "03-04"))) == [(KERNEL, "512")]  # another day
    assert list(tune.pending(keys, table, DEVICE.replace("3.6.0", "3.7.0"))) == list(keys)
    assert list(tune.pending(keys, table, DEVICE.replace("Some", "Other"))) == list(keys)


def test_a_choice_is_measured_again_when_cuda_kernels_have_come(
    tmp_path: Path, cases: list[tune.Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not the tiles of Triton's kernels."""
    choice, tiles = ("layer_norm", "16-bit 7"), (KERNEL, KEY)
    monkeypatch.setitem(select.OPS, "layer_norm", ("triton",))
    table, keys = tmp_path / "sm_90.toml", {choice: cases, tiles: cases}
    for key, entry in ((choice, {"order": ["triton"]}), (tiles, {"elements": 1})):
        table_file.put(table, *key, entry, tune.full_origin(key, DEVICE))
    assert not tune.pending(keys, table, DEVICE)
    monkeypatch.setattr(tune.cuda, "lib", SimpleNamespace(build_info=lambda: {"cuda": "13.0.88"}))
    assert not tune.pending(keys, table, DEVICE)  # they are no kernels of this op
    monkeypatch.setitem(select.OPS, "layer_norm", ("triton", "cuda"))
    assert list(tune.pending(keys, table, DEVICE)) == [choice]
    table_file.put(table, *choice, {"order": ["cuda"]}, tune.full_origin(choice, DEVICE))
    assert table_file.read(table)["layer_norm"]["16-bit 7"]["origin"] == f"{DEVICE}, cuda 13.0.88"
    assert not tune.pending(keys, table, DEVICE)


def test_a_key_that_is_not_finished_in_time_is_left(
    tmp_path: Path, cases: list[tune.Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = chain([0.0, 1.0, *[2.0] * 12], repeat(100.0))  # the begin, the wait for compilers, the first key's candidates
    monkeypatch.setattr(tune.time, "monotonic", lambda: next(clock))
    left, _ = run(tmp_path, {(KERNEL, KEY): cases, (KERNEL, "512"): cases})
    assert left == 1
    assert set(table_file.read(tmp_path / "sm_90.toml")[KERNEL]) - set(tables.table("sm_90")[KERNEL]) == {KEY}


def test_without_a_gpu_it_says_what_it_would_do() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    found = CliRunner().invoke(tune.main, ["--kernels", "layer_norm"])
    assert found.exit_code == 0
    assert "No CUDA device" in found.output
    assert "layer_norm_forward 128: 12 candidates on " in found.output
    assert "  layer_norm 16-bit 96 pixels: 3 candidates on " in found.output  # Triton, CUDA and the reference
    assert "window_attention" not in found.output
    assert CliRunner().invoke(tune.main, ["--calls", "none such"]).exit_code == 2


@pytest.mark.usefixtures("with_cuda")
def test_whole_blocks_and_what_only_a_network_decides_are_in_the_plan() -> None:
    """Blocks with many images and with one; the network, on CUDA, with 32 and one."""
    keys = tune.plan((*choose("local_block", tuned_calls()), *block_calls(), tuned_calls()[-1]), "sm_90", ["bfloat16"], (64, 1))
    planned = {key: {(case.call.op, case.batch, case.backend) for case in cases} for key, cases in keys.items()}
    for kernel, stages in (("local_block", (96, 192)), ("global_block", (96, 192)), ("fuse_path", (96,))):
        for channels in stages:
            assert planned[kernel, f"16-bit {channels}"] == {(f"prepare_{kernel}", batch, "cuda") for batch in (64, 1)}
    for section in NETWORK_SWITCHES:
        assert planned[section, "*"] == {("network", batch, "cuda") for batch in (32, 1)}
    for op, count in (("prepare_global_block", 4), ("prepare_fuse_path", 4)):
        found = [cases for (section, _), cases in planned.items() if section == op]
        assert found == [{(op, batch, "auto") for batch in (64, 1)}] * count


def test_the_rivals_of_a_block_are_its_parts_and_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts each by the backend that its own table says, not by the reference."""
    (call,) = [call for call in block_calls() if call.name.startswith("prepare_global_block global 7x7")]
    case = tune.Case(call, 1, "bfloat16", "forward", "auto")
    found = [asked.backend for _, asked in tune.trials(("prepare_global_block", "16-bit 7 24 32"), [case], "sm_90")]
    assert found == ["parts", "cuda"]
    asked = []
    for op in ("linear", "window_attention"):
        original = getattr(whole_calls.ops, f"prepare_{op}")
        monkeypatch.setattr(
            whole_calls.ops, f"prepare_{op}", lambda *a, o=original, **n: (asked.append(n["backend"]), o(*a, **n))[1]
        )
    with recording("sm_90"):
        for backend in ("parts", "reference", "auto"):
            (out,) = replace(case, backend=backend).bind("meta")()
            assert out.shape == (1, 7, 7, 768)
    assert asked == [*["auto"] * 3, *["reference"] * 3, *["auto"] * 3]
    with recording("sm_90"), tables.override("prepare_global_block", {"order": ["cuda"]}):
        monkeypatch.setattr(select, "why_not", lambda op, backend, **call: None)
        case.bind("meta")
    assert asked[9:] == ["cuda"] * 3


def test_a_switch_is_written_with_the_times_of_the_others(tmp_path: Path) -> None:
    (call,) = choose("local_block local 56x56", tuned_calls())
    cases = [tune.Case(call, batch, "bfloat16", "forward", "cuda") for batch in (64, 1)]
    cost = {0: 1.2, 1: 1.0, 4096: 0.8}

    class Gpu(Fake):
        def config(self) -> Config:
            return tables.lookup("local_block", "16-bit 96", "sm_90")

        def seconds(self, case: tune.Case) -> float:
            return 1e-3 * cost[self.config()["rows"]]

        def faults(self, case: tune.Case) -> list[str]:
            return []

    table, console = tmp_path / "sm_90.toml", Console(quiet=True)
    options = {"budget_s": 60.0, "jobs": 1, "console": console}
    assert tune.run({("local_block", "16-bit 96"): cases}, "sm_90", Gpu(), table, DEVICE, **options) == 0
    entry = table_file.read(table)["local_block"]["16-bit 96"]
    assert entry.pop("origin").startswith(DEVICE)
    assert entry == {"rows": 4096, "times": {"1": 1.25, "0": 1.5}}
    assert tables.parse(table.read_text(), table.name)


def test_kernels_of_one_architecture_wait_for_conformance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(record=True, width=200, file=(tmp_path / "log").open("w"))
    keys = {("mlp_sm90", "k"): [], ("mixer_sm90", "k"): [], (KERNEL, KEY): []}
    monkeypatch.setattr(conformed, "FILE", tmp_path / "passed.txt")
    monkeypatch.setattr(conformed.holds, "__defaults__", (conformed.FILE,))
    assert list(tune.conforming(keys, "Some GPU", console)) == [(KERNEL, KEY)]
    assert "left out: mixer_sm90, mlp_sm90: conformance has not passed on Some GPU" in console.export_text()
    conformed.note("Other GPU", passed=True, file=conformed.FILE)
    assert list(tune.conforming(keys, "Some GPU", console)) == [(KERNEL, KEY)]
    conformed.note("Some GPU", passed=True, file=conformed.FILE)
    assert tune.conforming(keys, "Some GPU", console) == keys
    conformed.note("Some GPU", passed=False, file=conformed.FILE)
    assert not conformed.FILE.exists()


@pytest.mark.usefixtures("with_cuda")
def test_a_choice_of_each_kind_can_be_written_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a run on a GPU, on which each candidate is faster than the one before it."""

    class Gpu:
        def __init__(self) -> None:
            self.seconds_left = 1.0

        def results(self, case: tune.Case) -> list[Tensor]:
            return [torch.ones(3)]

        def seconds(self, case: tune.Case) -> float:
            self.seconds_left *= 0.97
            return self.seconds_left

        def faults(self, case: tune.Case) -> list[str]:
            return []

        def check(self) -> None:
            raise AssertionError

    first = {section: (section, key) for section, key in reversed(whole_plan()) if section in {*SWITCHES, *select.OPS}}
    keys = {key: whole_plan()[key] for key in reversed(first.values())}
    table, console = tmp_path / "sm_90.toml", Console(record=True, width=200, file=(tmp_path / "log").open("w"))
    assert tune.run(keys, "sm_90", Gpu(), table, DEVICE, budget_s=600.0, jobs=1, console=console) == 0
    written = table_file.read(table)
    for section, key in keys:
        assert written[section][key]["origin"].startswith(DEVICE)
        assert written[section][key]["times"]
    assert not tune.pending(keys, table, DEVICE)
    assert "left out" not in console.export_text()
    monkeypatch.setattr(tables, "table", lambda _: written)
    _, body = table_file.described()
    assert {title for title, *_ in body} >= {"prepare_global_block", *SWITCHES.values()}
    shown = {*SWITCHES.values(), "prepare_global_block", "prepare_fuse_path"}
    assert not [line for line in body if line[0] in shown and "predicted" in line[2] and line[1] != "all others"]
