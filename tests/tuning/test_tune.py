"""Tuning on a stand-in for a GPU: what is tried, what is left out, what is written, and where it goes on."""

from __future__ import annotations

import pickle
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
from hifuse_fast.backends.cuda.launch import DEPENDENT_LAUNCHES
from hifuse_fast.backends.record import recording
from hifuse_fast.backends.tables import Config
from hifuse_fast.tuning import calls, rank, table_file, tune
from hifuse_fast.tuning.calls import choose
from hifuse_fast.tuning.frozen_calls import network_calls

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


def test_the_plan_has_every_configured_kernel_of_the_calls() -> None:
    keys = tune.plan(network_calls(), "sm_90", ["bfloat16"], (64, 1))
    looked_up = {kernel for kernel, _ in keys}
    assert looked_up >= {f"{op}_{way}" for op in ("layer_norm", "concat_norm", "linear") for way in ("forward", "backward")}
    assert looked_up >= {"window_attention_forward", "window_attention_backward", "depthwise_norm_forward"}
    assert all(1 <= len(found) <= tune.MOST_CASES for found in keys.values())
    assert {case.mode for case in keys[KERNEL, KEY]} == {"forward"}
    assert {case.mode for case in keys["layer_norm_backward", KEY]} == {"forward+backward"}
    assert looked_up >= {"gates_statistics", "gates"}  # of the frozen network alone
    pickle.loads(pickle.dumps(list(keys.values())))  # other processes compile for them


def test_ops_come_after_the_tiles_and_weigh_training_and_inference() -> None:
    keys = tune.plan(network_calls(), "sm_90", ["bfloat16"], (64, 1))
    of_ops = [rank.is_choice(section) for section, _ in keys]
    assert of_ops == sorted(of_ops)
    assert {section for section, _ in keys if rank.is_choice(section)} == set(select.OPS)
    found = keys["batch_norm", "16-bit 768 training gelu"]
    assert {(case.batch, case.mode) for case in found} == {(batch, mode) for batch in (64, 1) for mode in calls.MODES}
    assert {case.backend for case in found} == {"auto"}
    assert {case.backend for case in keys[KERNEL, KEY]} == {"triton"}


def test_an_algorithm_is_measured_with_many_images_and_with_one() -> None:
    """In calls that may take either; those that ask for it by name tune its kernels, and no backend is chosen for them."""
    keys = tune.plan(choose("prepare_mixer", network_calls()), "sm_90", ["bfloat16"], (64, 1))
    found = keys["mixer_winograd", "16-bit 576"]
    assert {(case.call.part, case.batch, case.backend) for case in found} >= {("dense", n, "triton") for n in (64, 1)}
    assert {case.call.part for case in keys["mixer_winograd_input", "16-bit 576"]} == {"winograd2"}
    assert {case.call.part for case in keys["prepare_mixer", "16-bit 576 dense"]} == {"dense"}


def test_every_kernel_of_the_tables_has_candidates() -> None:
    """Kernels for one architecture alone, by their name, stand in no other table. How launches begin is no kernel."""
    for architecture in tables.architectures():
        theirs = {kernel for kernel in tune.declared() if kernel.endswith("_sm90") and architecture != "sm_90"}
        assert set(tune.declared()) - theirs == set(tables.table(architecture)) - {*select.OPS, DEPENDENT_LAUNCHES}


def test_every_candidate_has_what_its_launcher_asks_for() -> None:
    """None of them fails for a name that is missing or unknown."""
    keys = tune.plan(network_calls(), "sm_90", ["bfloat16"], (1,))
    first = {kernel: (key, cases[0]) for (kernel, key), cases in reversed(keys.items()) if not rank.is_choice(kernel)}
    known = [kernel for kernel in tune.declared() if not kernel.endswith("_sm90") or hasattr(cuda.lib, kernel)]
    assert len(first) >= len(known) - 1  # where every linear is fused, nothing is left to finish
    for kernel, (key, case) in first.items():
        for config in tune.candidates(kernel, tables.lookup(kernel, key, "sm_90")):
            with tables.override(kernel, config), recording("sm_90") as record:
                case.bind("meta")()
            assert record.launches or kernel == "linear_forward"


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
