"""The kernels under compute-sanitizer, with a stand-in for it."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner, Result

from hifuse_fast.backends import select
from hifuse_fast.backends.cuda import library, sm90
from hifuse_fast.backends.record import recording
from tools import sanitize


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with a GPU and a compute-sanitizer, which is a script of the test."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(library, "lib", SimpleNamespace())
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "compute-sanitizer"


def run(program: Path, script: str) -> Result:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return CliRunner().invoke(sanitize.main)


def test_what_it_finds_fails(there: Path) -> None:
    found = run(there, 'echo "$@"; case "$*" in *racecheck*) exit 9;; esac')
    assert found.exit_code == 1
    assert "memcheck: exit code 0" in found.output
    assert "racecheck: exit code 9" in found.output
    assert "--tool racecheck --error-exitcode 9" in found.output
    assert "Error: racecheck found something" in found.output


def test_where_it_does_not_start_nothing_fails(there: Path) -> None:
    found = run(there, "echo no permission; exit 1")
    assert found.exit_code == 0
    assert "does not start here: nothing was checked\nno permission" in found.output


def test_without_a_device_or_the_kernels_nothing_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sanitize, "check", lambda *_: pytest.fail("it was called"))
    assert CliRunner().invoke(sanitize.main).exit_code == 0


def test_every_op_with_cuda_kernels_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "OPS", dict.fromkeys(select.OPS, ("triton", "cuda")))
    assert {call.op for call in sanitize.calls()} == set(select.OPS)


@pytest.mark.skipif(library.lib is None, reason="the CUDA kernels are not built")
def test_whole_blocks_are_called() -> None:
    """On maps that their kernels serve, at both widths."""
    found = set()
    for call in sanitize.calls_of_blocks():
        with recording("sm_90") as record:
            call.run(call.inputs(sanitize.BATCH, torch.bfloat16, "meta"), None, "cuda")
        found |= {(each.entry, call.stage) for each in record.launches}
    assert found == {(entry, stage) for entry in ("local_block", "global_block") for stage in (1, 2)} | {("fuse_path", 1)}


@pytest.mark.skipif(not hasattr(library.lib, "mlp_sm90"), reason="there are no kernels for sm_90a here")
def test_the_kernels_for_sm_90a_are_called() -> None:
    """Of the network's calls those that they serve."""
    found = set()
    for call in sanitize.calls_of_sm90():
        with recording("sm_90") as record, sm90.taken():
            call.run(call.inputs(sanitize.BATCH, torch.bfloat16, "meta"), None, "cuda")
        found |= {each.entry for each in record.launches}
    assert found == set(sm90.KERNELS)


def test_the_sanitizer_of_the_toolkit_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sanitize.importlib.util, "find_spec", lambda _: None)
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.write_text("")
    program.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert sanitize.find() == str(program)
    packages = tmp_path / "nvidia" / "cu13" / "compute-sanitizer"
    packages.mkdir(parents=True)
    (packages / "compute-sanitizer").write_text("")
    (packages / "compute-sanitizer").chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr(sanitize.importlib.util, "find_spec", lambda _: spec)
    assert sanitize.find() == str(packages / "compute-sanitizer")
