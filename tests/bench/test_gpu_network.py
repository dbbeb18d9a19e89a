"""The bench of the network on a CUDA device, as far as a CPU can tell: its engines, its checks, its rows."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from benchmarks import gpu_network
from benchmarks.gpu_network import Case
from hifuse_fast import create_model
from hifuse_fast.backends import select
from hifuse_fast.bench import cases, machine, rows, turns
from hifuse_fast.bench.cases import Ready
from hifuse_fast.layers import LayerNorm
from tools import pages

CPU = torch.device("cpu")
LIMITS = turns.Limits({"bfloat16": 1e12, "float32": 1e12}, 1e11)
NARROW = (("dims", (8, 16, 24, 32)), ("depths", (2, 1, 1, 1)), ("conv_depths", (1, 1, 1, 1)), ("num_heads", (1, 2, 3, 4)))


def case(mode: str, dtype: str = "bfloat16", batch: int = 3) -> Case:
    return Case("hifuse_tiny", batch, dtype, mode, 64, NARROW)


def measure(case: Case, *engines: str) -> dict[str, rows.Row]:
    return {row.engine: row for row in gpu_network.measure(case, engines or None, CPU, limits=LIMITS, budget_s=0.0)}


@pytest.fixture
def aot(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile without its code generator."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, *, mode, **options: compiler(f, backend="aot_eager", **options))


@pytest.mark.usefixtures("aot")
@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        pytest.param("inference", "bfloat16", marks=pytest.mark.slow),  # with compiled engines
        ("inference", "float32"),
        pytest.param("training", "bfloat16", marks=pytest.mark.slow),
        pytest.param("training", "float32", marks=pytest.mark.slow),  # test_training.py takes such a step
    ],
)
def test_every_engine_is_right(mode: str, dtype: str) -> None:
    # Those by one backend would run in Triton's interpreter and in the emulation.
    engines = [name for name in gpu_network.ENGINES[mode] if dtype == "bfloat16" or "compile" not in name]
    engines = [name for name in engines if name not in ("hifuse_fast triton", "hifuse_fast cuda")]
    found = measure(case(mode, dtype), *engines)
    assert list(found) == engines
    for row in found.values():
        assert row.ms_p50 is not None, row.note
        assert (row.suite, row.case, row.per, row.batch) == ("gpu_network", "hifuse_tiny", "image", 3)
        assert row.images_per_s == pytest.approx(1e3 / row.ms_p50)
        assert row.ready_s > 0
        assert row.error < {"bfloat16": 0.1, "float32": 1e-4}[dtype]
        assert row.note.startswith("top-1" if mode == "inference" else "loss ")
    assert found["eager"].ratio == 1


def test_what_is_compiled_over_our_ops_is_not_the_compiled_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though both are of one network: each is traced under its own backend."""
    traced = []
    compiler = torch.compile

    def trace(graph: torch.fx.GraphModule, _: Any) -> Any:
        traced.append(select.current_backend())
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda f, *, mode, **options: compiler(f, backend=trace, **options))
    torch.compiler.reset()
    network = LayerNorm(8)
    forwards = {backend: gpu_network._compile(network, torch.device("cpu")) for backend in ("reference", "auto")}
    for backend in ("reference", "auto", "reference", "auto"):
        gpu_network.infer(forwards[backend], torch.ones(1, 2, 2, 8), backend)
    assert traced == ["reference", "auto"]


@pytest.mark.parametrize("mode", gpu_network.MODES)
def test_a_wrong_engine_is_not_timed(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    eager = gpu_network.ENGINES[mode]["eager"]

    def wrong(subject: gpu_network.Subject) -> Ready[Any]:
        call = eager(subject).call
        if mode == "inference":
            return Ready(lambda: call() * 1.2)
        place = 1 + subject.names.index("fu2.spatial.bn.bias")  # one number among a hundred thousand
        return Ready(lambda: [g * 2.5 if i == place else g for i, g in enumerate(call())])

    def failing(_: gpu_network.Subject) -> Ready[Any]:
        raise RuntimeError("no such thing\nmore")

    monkeypatch.setitem(gpu_network.ENGINES, mode, {"eager": eager, "compile": failing, "hifuse_fast": wrong})
    found = measure(case(mode))
    assert found["eager"].ms_p50 is not None
    assert found["compile"].note.startswith("missing: RuntimeError: no such thing")
    assert found["hifuse_fast"].ms_p50 is None
    assert "wrong output" in found["hifuse_fast"].note
    assert ("fu2.spatial.bn.bias" in found["hifuse_fast"].note) == (mode == "training")
    with pytest.raises(Exception, match="wrong output, not timed: hifuse_fast hifuse_tiny"):
        turns.report(Console(quiet=True), list(found.values()), "", None)


@pytest.mark.slow
@pytest.mark.skipif(select.why_not("linear", "triton", device=CPU, dtype=torch.float32) is not None, reason="no interpreter")
def test_the_check_takes_a_step_on_the_triton_kernels() -> None:
    subject = gpu_network.make_subject(case("training"), CPU)
    exact, eager = gpu_network.exact_step(subject), gpu_network.eager_steps(subject)
    verdict = gpu_network.judge_step(subject, eager, exact, gpu_network.step(subject.network, subject, "triton"))
    assert verdict.ok, verdict.note


def test_a_wrong_loss_is_seen() -> None:
    subject = gpu_network.make_subject(case("training"), CPU)
    exact, eager = gpu_network.exact_step(subject), gpu_network.step(subject.network, subject, "reference")
    assert gpu_network.judge_step(subject, [eager], exact, eager).ok
    for factor in (1.2, float("nan")):
        verdict = gpu_network.judge_step(subject, [eager], exact, [eager[0] * factor, *eager[1:]])
        assert not verdict.ok
        assert "wrong the loss" in verdict.note


def test_a_peer_that_is_a_little_off_is_timed_and_its_row_says_so() -> None:
    subject = gpu_network.make_subject(case("training", "float32"), CPU)
    exact, eager = gpu_network.exact_step(subject), gpu_network.step(subject.network, subject, "reference")
    errors = [(each.double() - true).norm().item() for each, true in zip(eager[1:], exact[1:], strict=True)]
    least = 1 + min((each, i) for i, each in enumerate(errors) if each > 0)[1]
    judge = partial(gpu_network.judge_step, subject, [eager], exact)

    def off(times: float, of: slice) -> list[torch.Tensor]:
        moved = [true + times * (each - true) for each, true in zip(eager, exact, strict=True)]
        return [new if i in range(of.start, of.stop) else old for i, (new, old) in enumerate(zip(moved, eager, strict=True))]

    one, far = off(1e3, slice(least, least + 1)), off(20, slice(1, len(eager)))
    assert not judge(one).ok
    assert judge(one, own=False).ok
    assert f"wrong {subject.names[least - 1]} and 0 more" in judge(one, own=False).note
    assert not judge(far, own=False).ok


def test_the_check_is_against_the_whole_batch_in_float64() -> None:
    """Gradient checkpointing changes nothing, and the statistics of a batch are of all its images."""
    subject = gpu_network.make_subject(case("training", "float32"), CPU)
    exact, plain = gpu_network.exact_step(subject), gpu_network.step(subject.network, subject, "reference")
    assert len(exact) == 1 + len(subject.names)
    torch.testing.assert_close(plain[0].double(), exact[0], rtol=1e-5, atol=0)


def test_what_a_case_takes() -> None:
    inference, training = Case("hifuse_tiny", 4, "bfloat16", "inference"), Case("hifuse_tiny", 4, "bfloat16", "training")
    assert inference.flop == pytest.approx(2 * 4 * 17.5e9, rel=0.01)
    assert training.flop == 3 * inference.flop
    used = sum(gpu_network.trained("hifuse_tiny", ()).values())
    network = create_model("hifuse_tiny", 7, device="meta")
    assert 0.95 < used / sum(p.numel() for p in network.parameters()) < 1
    assert len(gpu_network.trained("hifuse_tiny", ())) == len(list(network.parameters())) - 48
    images = 4 * 3 * 224**2
    assert (inference.moved, training.moved) == (2 * (used + images), 4 * (2 * used + images))


def test_memory_is_weights_and_what_a_first_call_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    monkeypatch.setattr(machine, "peak_memory", lambda call, device: measured.append(call()) or 10.0)
    ready = Ready(lambda: "later", held_mib=5.0, fresh=lambda: lambda: "first")
    found = cases.candidate(lambda: ready, lambda output: rows.Verdict(output == "later", 0.0), CPU, own=True)
    assert measured == ["first"]
    assert found.peak_mib == 15.0


def test_an_engine_that_goes_wrong_once_captured_is_not_timed() -> None:
    outputs = iter([1, 1, 1, 2])
    found = cases.candidate(
        lambda: Ready(lambda: next(outputs)), lambda output: rows.Verdict(output == 1, 0.0, "checked"), CPU, own=True
    )
    assert (found.ok, found.note) == (False, "checked")


@pytest.mark.slow
def test_a_run_goes_on_with_the_engines_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "limits", lambda *_: LIMITS)
    told = []
    original = gpu_network.measure
    monkeypatch.setattr(
        gpu_network,
        "measure",
        lambda case, chosen, *rest, **options: told.append(chosen) or original(case, chosen, *rest, **options),
    )
    options = {"output": tmp_path, "limit_s": 1e9, "resume": True, "console": Console(quiet=True)}
    for chosen in (("eager",), ("eager",), ("eager", "hifuse_fast"), ("hifuse_fast",)):
        gpu_network.suite(chosen, 0.0).run_cases([case("inference")], CPU, **options)
    assert told == [("eager",), ("eager", "hifuse_fast")]
    found = rows.read(tmp_path / f"{machine.device_slug(CPU)}.csv")
    assert [row.engine for row in found] == ["eager", "hifuse_fast"]


def test_cases_in_their_order() -> None:
    found = gpu_network.all_cases(["hifuse_tiny", "hifuse_base"], [128, 1], ["bfloat16"], gpu_network.MODES)
    assert [(c.name, c.batch, c.mode) for c in found[:3]] == [
        ("hifuse_tiny", 128, "inference"), ("hifuse_base", 128, "inference"), ("hifuse_tiny", 128, "training"),
    ]  # fmt: skip
    assert len(found) == 8


def test_without_a_device_it_says_what_it_would_do() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    found = CliRunner().invoke(gpu_network.main, ["--models", "hifuse_tiny"])
    assert found.exit_code == 0
    assert "these 12 cases" in found.output
    assert CliRunner().invoke(gpu_network.main, ["--engines", "none such"]).exit_code == 2


def test_the_page_shows_a_line_an_engine() -> None:
    row = measure(case("inference"), "eager")["eager"]
    ours = dataclasses.replace(row, engine="hifuse_fast", ms_p50=row.ms_p50 / 2)
    text = pages.gpu_network([row, ours])
    assert "| hifuse_tiny | inference | eager |" in text
    assert "| 2.00x |" in text
    assert pages.gpu_network([]) == "Not measured yet.\n"


def test_ours_by_one_backend_is_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """But by CUDA's kernels where they are built alone."""
    asked: list[str] = []

    def freeze(*_: object, backend: str, **options: object) -> torch.nn.Module:
        asked.append(backend)
        return torch.nn.Identity()

    monkeypatch.setattr(gpu_network, "optimize_for_inference", freeze)
    subject = gpu_network.make_subject(case("inference"), CPU)
    for name in gpu_network.OWN:
        gpu_network.ENGINES["inference"][name](subject)
    assert list(dict.fromkeys(asked)) == ["auto", "triton", "cuda"]
    for lib, there in ((None, False), (object(), True)):
        monkeypatch.setattr(gpu_network.library, "lib", lib)
        for mode in gpu_network.MODES:
            assert ("hifuse_fast cuda" in gpu_network.chosen_engines(case(mode), None)) is there
