"""The comparison of a GPU's results with the emulation's, on files of the tests' own."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from click.testing import CliRunner

from hifuse_fast.tuning import conformed
from tools import conformance


def line(name: str, *numbers: float, bound: float = 0.0) -> str:
    return f"{bound.hex()} {len(numbers)} {struct.pack(f'>{len(numbers)}f', *numbers).hex()} {name}\n"


def compared(tmp_path: Path, gpu: str, emulated: str) -> tuple[int, str]:
    files = []
    for name, text in (("gpu", gpu), ("emulated", emulated)):
        files += [f"--{name}", str(tmp_path / name)]
        (tmp_path / name).write_text(text)
    result = CliRunner().invoke(conformance.main, files)
    return result.exit_code, result.output


def test_equal_bits_and_bounds(tmp_path: Path) -> None:
    emulated = line("moves", 1.0, 2.0) + line("exp2, approximate", 1.0, 0.0, bound=1e-3)
    assert compared(tmp_path, emulated, emulated)[0] == 0
    code, text = compared(tmp_path, line("moves", 1.0, 2.0) + line("exp2, approximate", 1.0009, 0.0, bound=1e-3), emulated)
    assert code == 0
    assert "2 of 2 cases conform" in text
    code, text = compared(tmp_path, line("moves", 1.0, 2.5) + line("exp2, approximate", 1.0, 0.1, bound=1e-3), emulated)
    assert code == 1
    assert "moves: 1 of 2 words differ; word 1 is 40200000 on the GPU and 40000000 in the emulation; equal bits" in text
    assert "exp2, approximate: 1 of 2 words differ; word 1" in text
    assert "a relative difference of 0.001 is allowed" in text


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_finite_does_not_pass_a_bound(tmp_path: Path, number: float) -> None:
    emulated = line("exp2", 1.0, bound=1e-3)
    assert compared(tmp_path, line("exp2", number, bound=1e-3), emulated)[0] == 1


def test_cases_of_other_architectures(tmp_path: Path) -> None:
    emulated = line("moves", 1.0) + line("wgmma", 1.0)
    code, text = compared(tmp_path, line("moves", 1.0), emulated)
    assert code == 0
    assert "Not of this GPU's architecture: wgmma." in text
    assert compared(tmp_path, line("moves", 1.0) + line("new", 1.0), emulated)[0] == 1
    assert compared(tmp_path, line("moves", 1.0, 2.0), emulated)[0] == 1
    assert compared(tmp_path, "", emulated)[0] == 1


def test_bad_files_and_options(tmp_path: Path) -> None:
    (tmp_path / "bad").write_text(f"{(0.0).hex()} 3 3f800000 moves\n")
    with pytest.raises(ValueError, match="line 1: 1 words where 3 were announced"):
        conformance.read(tmp_path / "bad")
    assert CliRunner().invoke(conformance.main, ["--gpu", str(tmp_path / "bad")]).exit_code == 2


@pytest.mark.parametrize(("number", "passes"), [(1.0, True), (2.0, False)])
def test_a_run_on_a_gpu_notes_whether_it_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: float, passes: bool
) -> None:
    """For the tuner, which leaves out kernels that stand on what does not conform; a note from before goes first."""
    file, noted = tmp_path / "passed.txt", conformed.note
    monkeypatch.setattr(conformed, "note", lambda device, passed: noted(device, passed, file))
    monkeypatch.setattr(conformance, "_device", lambda: "Some GPU")
    monkeypatch.setattr(conformance, "_architecture", lambda: "9.0")
    noted("Some GPU", True, file)

    def run(build: Path, architecture: str) -> dict[str, Path]:
        assert not file.exists()
        files = {name: tmp_path / name for name in ("gpu", "emulated")}
        files["gpu"].write_text(line("moves", number))
        files["emulated"].write_text(line("moves", 1.0))
        return files

    monkeypatch.setattr(conformance, "run", run)
    assert CliRunner().invoke(conformance.main).exit_code == (0 if passes else 1)
    assert conformed.holds("Some GPU", file) is passes
    assert not conformed.holds("Other GPU", file)
