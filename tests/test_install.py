"""Installing with pip: with a compiler, without one, without torch; and the torch that is compiled against."""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.paths import ROOT
from tests.support.processes import WITHOUT_EDITABLE, python

CHECKOUT = ("CMakeLists.txt", "LICENSE", "README.md", "csrc", "hifuse_fast", "pyproject.toml", "setup.py")
has_build_tools = pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="setuptools is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files of a fresh clone, so that nothing here is touched."""
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in CHECKOUT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, clone / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "_native_skipped.txt"))
        else:
            shutil.copy(source, clone / name)
    return clone


def pip_install(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`pip install` into the folder `site` beside the checkout, without network and isolation."""
    command = [sys.executable, "-m", "pip", "install", "-v", "--no-build-isolation", "--no-deps", "--no-index"]
    command += ["--target", str(checkout.parent / "site"), str(checkout)]
    unset = {key: value for key, value in os.environ.items() if key not in {"CXX", "HIFUSE_NATIVE", "CMAKE_ARGS"}}
    return subprocess.run(command, capture_output=True, text=True, env={**unset, **environment}, check=False)


def ask(checkout: Path, question: str) -> str:
    return python(f"{WITHOUT_EDITABLE}import hifuse_fast; print({question})", checkout.parent / "site")


def path_without_compilers(folder: Path) -> str:
    """A PATH with this environment's own programs and no compiler."""
    folder.mkdir()
    for name in ("cmake", "ninja"):
        if found := shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"):
            (folder / name).symlink_to(found)
    return str(folder)


@has_build_tools
def test_without_a_compiler_it_is_pure_python_and_says_so(checkout: Path, tmp_path: Path) -> None:
    path = path_without_compilers(tmp_path / "bin")
    done = pip_install(checkout, PATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "installing pure Python, without the compiled kernels: no C++ compiler was found" in done.stdout + done.stderr
    question = "hifuse_fast.backends.native.library.why_missing, hifuse_fast.info().ops['window_attention']['reference cpu']"
    answers = ask(checkout, question)
    assert "no C++ compiler was found" in answers
    assert answers.endswith(" None")

    strict = pip_install(checkout, PATH=path, HIFUSE_NATIVE="1")
    assert strict.returncode != 0
    assert "cannot build the compiled library: no C++ compiler" in strict.stdout + strict.stderr


@pytest.mark.slow
@has_build_tools
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_with_a_compiler_the_library_is_in_the_wheel(checkout: Path) -> None:
    done = pip_install(checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ask(checkout, "hifuse_fast.backends.native.library.why_missing") == "None"
    assert ask(checkout, "hifuse_fast.backends.native.library.lib.__file__").startswith(str(checkout.parent))
    assert not list((checkout / "hifuse_fast").glob("*.so")), "a plain install leaves the checkout as it was"


@pytest.fixture(scope="module")
def build() -> dict[str, Any]:
    """What setup.py defines."""
    import setuptools

    patch = pytest.MonkeyPatch()
    patch.setattr(setuptools, "setup", lambda **_: None)
    try:
        return runpy.run_path(str(ROOT / "setup.py"))
    finally:
        patch.undo()


@has_build_tools
def test_it_compiles_against_the_torch_that_is_installed(build: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also under build isolation, where pip points PYTHONPATH at an environment without torch, or with another one."""
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    found = build["find_torch"]()
    assert found["version"] == torch.__version__
    assert Path(found["include"], "torch", "csrc", "stable", "library.h").exists()


@has_build_tools
@pytest.mark.parametrize(
    ("output", "code", "reason"),
    [("", 1, "torch was not installed"), ('{"version": "2.10.1", "include": "", "lib": ""}', 0, "torch 2.10.1 is too old")],
)
def test_without_a_fitting_torch_the_reason_is_named(
    build: dict[str, Any], monkeypatch: pytest.MonkeyPatch, output: str, code: int, reason: str
) -> None:
    find: Callable[[], dict[str, str]] = build["find_torch"]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], code, output, ""))
    with pytest.raises(build["MissingError"], match=reason):
        find()


@has_build_tools
def test_a_compiler_that_is_named_must_exist(build: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    with pytest.raises(build["MissingError"], match="CXX=no-such-compiler -O1 was not found"):
        build["find_compiler"]()


def test_the_build_asks_for_no_torch() -> None:
    """Else pip would download a second one, of several GB, into its isolated environment."""
    import tomllib

    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert not [name for name in requires if name.startswith("torch")]
