"""The stages of `make gpu-check`, run with commands of the tests' own."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import time
import zipfile
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from benchmarks.gpu_network import ENGINES
from hifuse_fast import list_models
from hifuse_fast.bench import turns
from tools import gpu_check
from tools.gpu_check import Report, Step

NETWORKS = {name for engines in ENGINES.values() for name in engines}


def python(code: str) -> list[str]:
    return ["-c", code]


def test_without_a_gpu_it_says_what_it_would_do(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    found = CliRunner().invoke(gpu_check.main, ["--report", str(tmp_path / "report")])
    assert found.exit_code == 0
    assert "nothing is run" in found.output
    expected = [
        "tools.conformance", "HIFUSE_CUDA=1 HIFUSE_NATIVE=0", "setup.py build_ext --inplace", "HIFUSE_CUDA=0", "tools.sanitize",
        "benchmarks.gpu_profile --backend cuda", "-m 'gpu and not slow' -k cuda", "-k 'not cuda'", "-m 'gpu and slow'",
        "hifuse_fast.tuning.tune --choices", "--budget 160", "hifuse_fast.tuning.tune --output",
        "benchmarks.gpu_ops --resume --engines",
        "benchmarks.gpu_ops --resume --limit 70", "benchmarks.gpu_network --resume --models hifuse_small --engines",
        "--batch 128 --dtypes bfloat16 --limit 120", "hifuse_fast.cli bench",
    ]  # fmt: skip
    places = [found.output.index(part) for part in expected]
    assert places == sorted(places)
    assert found.output.count("left out when the time is up: ") == sum(len(s(tmp_path)) for s in gpu_check.STAGES.values())
    assert list(gpu_check.STAGES) == list(gpu_check.SECONDS) == [
        "conformance", "build", "sanitizer", "profile", "parity", "tune", "ops", "network",
    ]  # fmt: skip
    assert sum(gpu_check.SECONDS.values()) <= 14 * 60
    assert "--results benchmarks/results" in found.output
    assert "pip" not in found.output
    assert not (tmp_path / "report").exists()
    assert CliRunner().invoke(gpu_check.main, ["--stage", "weather"]).exit_code == 2


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gpu_check, "LOGS", tmp_path / "logs")
    return tmp_path / "logs"


def stages(monkeypatch: pytest.MonkeyPatch, **named: list[Step]) -> None:
    for name, steps in named.items():
        monkeypatch.setitem(gpu_check.STAGES, name, lambda _, steps=steps: steps)


@pytest.mark.usefixtures("cuda")
def test_a_report_of_what_passed_failed_and_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "old.csv").write_text("old")
    os.utime(kept / "old.csv", (1, 1))
    monkeypatch.setattr(gpu_check, "KEPT", (str(kept),))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    stages(
        monkeypatch,
        build=[Step("build", lambda s: python("raise SystemExit(3)"), must_pass=False)],
        parity=[
            Step("first", lambda s: python("import os; print(os.environ.get('TRITON_INTERPRET'), 'seen')")),
            Step("second", lambda s: python("raise SystemExit(4)")),
        ],
        ops=[
            Step(
                "ops",
                lambda s: python(f"import time; open({str(kept / 'new.csv')!r}, 'w').write('x'); time.sleep(600)"),
                dropped="the other cases",
            ),
            Step("late", lambda s: python("print('never')"), dropped="the rest"),
        ],
    )
    began = time.monotonic()
    call = ["--stage", "build,parity,ops", "--limit", "1.5", "--report", str(tmp_path / "report")]
    found = CliRunner().invoke(gpu_check.main, call)
    assert time.monotonic() - began < 60
    assert found.exit_code == 1
    assert "failed: parity, ops" in found.output
    assert "ops: cut off; left out: the other cases" in found.output
    assert "late: no time left; left out: the rest" in found.output
    text = (tmp_path / "report" / "check.md").read_text()
    assert text.startswith("# Some GPU")
    for part in ("## build: FAILED with 3", "## first: passed", "None seen", "## second: FAILED with 4", "## ops: cut off"):
        assert part in text
    assert (tmp_path / "report" / "new.csv").read_text() == "x"
    assert not (tmp_path / "report" / "old.csv").exists()


def test_what_needs_no_compiler_comes_first_and_leaves_time(tmp_path: Path) -> None:
    """Also where hardly any time is left: a limit is no negative one."""
    own, compiled, _ = gpu_check.network(tmp_path)
    for seconds in (540.0, 10.0):
        limits = [float(step.arguments(seconds)[-1]) for step in (own, compiled)]
        assert 0 <= limits[0] <= limits[1] < seconds
    for steps in (gpu_check.tune(tmp_path), gpu_check.ops(tmp_path)):
        assert all("-" not in step.arguments(10.0)[-1] or step.arguments(10.0)[-1] == "0" for step in steps)


COMMANDS = [step for make in gpu_check.STAGES.values() for step in make(Path("report"))]


@pytest.mark.parametrize("step", COMMANDS, ids=lambda step: step.name)
def test_every_command_is_there_and_takes_its_arguments(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its callback left out: what would fail there for a name or an option fails here."""
    first, module, *options = step.arguments(100.0)
    if first != "-m":
        assert (gpu_check.ROOT / first).is_file()
        return
    assert importlib.util.find_spec(module) is not None
    if module == "pytest":
        assert "gpu" in options[options.index("-m") + 1]
        return
    command = importlib.import_module(module).main
    if module == "hifuse_fast.cli":
        command = command.get_command(click.Context(command), options.pop(0))
    parsed = command.make_context("test", options, resilient_parsing=False)
    assert parsed.params
    for name, text in (("engines", parsed.params.get("chosen")), ("models", parsed.params.get("models"))):
        known = {"benchmarks.gpu_ops": {"reference", *turns.OWN}, "benchmarks.gpu_network": {*list_models(), *NETWORKS}}
        assert not text or set(text.split(",")) <= known[module], name


def test_each_module_runs_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """To where it says that there is none: engines, models and calls that are named are known."""
    if torch.cuda.is_available():
        pytest.skip("there is one")
    for step in (*gpu_check.ops(Path()), *gpu_check.network(Path())[:2], *gpu_check.profile(Path())):
        _, module, *options = step.arguments(100.0)
        found = CliRunner().invoke(importlib.import_module(module).main, options)
        assert found.exit_code == 0, found.output
        assert "No CUDA device: nothing is measured" in found.output


@pytest.mark.usefixtures("cuda")
def test_all_stages_share_the_time_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "KEPT", ())
    stages(monkeypatch, parity=[Step("one", lambda s: python(f"assert {s} <= 2; import time; time.sleep(60)"))],
           tune=[Step("two", lambda s: python("print('never')"), dropped="all keys")])  # fmt: skip
    call = ["--stage", "parity,tune", "--total", "2", "--report", str(tmp_path)]
    found = CliRunner().invoke(gpu_check.main, call)
    assert found.exit_code == 1
    assert "two: no time left; left out: all keys" in found.output


@pytest.mark.usefixtures("cuda")
def test_what_a_stage_leaves_the_next_one_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a step has its own variables."""
    monkeypatch.setattr(gpu_check, "KEPT", ())
    monkeypatch.setattr(gpu_check, "SECONDS", {"parity": 20.0, "tune": 30.0})
    code = "import os; assert os.environ['A'] == 'b c'"
    stages(monkeypatch, parity=[Step("one", lambda s: python(f"assert 18 < {s} <= 20"))],
           tune=[Step("two", lambda s: python(f"assert 45 < {s} <= 50; {code}"), environment={"A": "b c"})])  # fmt: skip
    found = CliRunner().invoke(gpu_check.main, ["--stage", "parity,tune", "--report", str(tmp_path)])
    assert found.exit_code == 0, found.output
    assert "two: A='b c' " in found.output


@pytest.mark.usefixtures("cuda")
def test_libraries_are_built_for_this_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setenv("HIFUSE_CUDA_EMULATED", "1")
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    assert gpu_check.environment()["TORCH_CUDA_ARCH_LIST"] == "9.0"
    assert "HIFUSE_CUDA_EMULATED" not in gpu_check.environment()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    assert gpu_check.environment()["TORCH_CUDA_ARCH_LIST"] == "8.0"


@pytest.mark.usefixtures("cuda")
def test_all_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages(monkeypatch, parity=[Step("one", lambda s: python(f"assert 8 < {s} <= 10"))])
    monkeypatch.setattr(gpu_check, "KEPT", ())
    monkeypatch.setenv("OUT", str(tmp_path))
    assert CliRunner().invoke(gpu_check.main, ["--stage", "parity", "--limit", "10"]).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"check.md", "logs.zip", "logs"}
    with zipfile.ZipFile(tmp_path / "logs.zip") as packed:
        assert packed.namelist() == ["one.log"]


def test_an_interrupted_step_does_not_live_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    original = gpu_check.subprocess.Popen

    class Interrupted(original):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)
            started.append(self)
            self.first = True

        def wait(self, timeout: float | None = None) -> int:
            if self.first:
                self.first = False
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(gpu_check.subprocess, "Popen", Interrupted)
    step = Step("sleep", lambda s: [])
    with pytest.raises(KeyboardInterrupt):
        gpu_check.run_step(step, [sys.executable, "-c", "import time; time.sleep(600)"], Report(tmp_path), 60)
    assert started[0].returncode is not None


def test_images_for_machines_without_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hifuse_fast.data.images import list_images, load_image

    monkeypatch.setattr(gpu_check, "IMAGES", 2)
    gpu_check.make_images(tmp_path / "images")
    assert [load_image(path).size for path in list_images([tmp_path / "images"])] == [(224, 224)] * 2
