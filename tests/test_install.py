"""The source distribution and the wheel, built and installed with pip: with a compiler, without one, without torch."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hifuse_fast import create_model
from hifuse_fast.checkpoints import save_checkpoint
from tests.support.paths import ROOT

FILES = ("CHANGELOG.md", "CMakeLists.txt", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md",
         "pyproject.toml", "requirements-dev.txt", "requirements-peers.txt", "setup.py")  # fmt: skip
FOLDERS = ("benchmarks", "csrc", "docs", "examples", "hifuse_fast", "include", "tests", "tools")
BUILT = ("*.so", "__pycache__", "*.egg-info", "_native_skipped.txt", "_cuda_skipped.txt")
DATA = {
    "py.typed",
    "app/report.html.jinja",
    "tuning/candidates.toml",
    *(f"backends/tables/sm_{number}.toml" for number in (80, 90, 100)),
    *(f"data/recipes/{name}.toml" for name in ("isic2018", "kvasir", "covid-ct")),
}
# Every file is compiled once, for one instruction set: whether all are there is asked, not what the optimiser makes of them.
QUICK = "-DCMAKE_BUILD_TYPE=Debug " + " ".join(
    f"-DCOMPILER_KNOWS_{isa}=OFF" for isa in ("avx2", "avx512", "avx512_bf16", "amx")
)
has_build_tools = pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="setuptools is not installed")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a fresh clone, so that nothing here is touched."""
    clone = tmp_path_factory.mktemp("checkout")
    for name in FILES:
        shutil.copy(ROOT / name, clone / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns(*BUILT))
    for library in ("native", "cuda"):
        (clone / "hifuse_fast" / f"_{library}_skipped.txt").write_text("of an editable install")
    for library in ("_C", "_cuda", "_cuda_emulated"):
        (clone / "hifuse_fast" / f"{library}.of-an-editable-install.so").touch()
    return clone


@pytest.fixture(scope="module")
def sdist(checkout: Path) -> Path:
    code = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=checkout, check=True, capture_output=True)
    (made,) = (checkout / "dist").iterdir()
    return made


def pip(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """pip without network and isolation."""
    command = [sys.executable, "-m", "pip", *map(str, arguments), "-v", "--no-build-isolation", "--no-deps", "--no-index"]
    return subprocess.run(command, capture_output=True, text=True, env=clean(environment), check=False)


def clean(environment: dict[str, str]) -> dict[str, str]:
    """What is told, in the environment that is there without what steers a build."""
    there = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("HIFUSE_", "CUDA")) and key not in ("CXX", "CMAKE_ARGS", "TORCH_CUDA_ARCH_LIST")
    }
    return {**there, **environment}


def make_wheel(source: Path, folder: Path, **environment: str) -> tuple[Path, str]:
    """The wheel that is built of a source distribution, packed or not, and what pip said."""
    done = pip("wheel", source, "--wheel-dir", folder, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.iterdir()
    return wheel, done.stdout + done.stderr


def install(wheel: Path, site: Path) -> None:
    done = pip("install", wheel, "--target", site, "--no-compile")
    assert done.returncode == 0, done.stdout + done.stderr


def python(site: Path, *arguments: str | Path, **variables: str) -> str:
    """What Python says that has the package of `site`, and of this environment everything but an editable install."""
    others = [path for path in sys.path if path and Path(path) != ROOT]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *others]), **variables}
    command = [sys.executable, "-S", *map(str, arguments)]  # -S: no .pth files, by which editable installs are found
    done = subprocess.run(command, capture_output=True, text=True, cwd=site, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Runs a script with each list of arguments, in one process: most of its time it imports torch.
SEVERAL_TIMES = """
import json, runpy, sys
script, *calls = sys.argv[1:]
for call in calls:
    sys.argv = [script, *json.loads(call)]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    print("\\f", end="")
"""


def said_by_command(site: Path, folder: Path) -> tuple[str, list[dict[str, str]]]:
    """What the installed command says of itself, and of one image."""
    options: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)}
    save_checkpoint(create_model("hifuse_tiny", num_classes=2, **options), folder / "tiny.safetensors")
    Image.new("RGB", (32, 40)).save(folder / "x.png")
    arguments = ["--checkpoint", str(folder / "tiny.safetensors"), "--image-size", "32", "--resize", "33"]
    calls = json.dumps(["info"]), json.dumps(["predict", str(folder / "x.png"), *arguments])
    info, rows, _ = python(site, "-c", SEVERAL_TIMES, site / "bin" / "hifuse-fast", *calls).split("\f")
    return info, list(csv.DictReader(rows.splitlines()))


def path_without_compilers(folder: Path) -> str:
    """A PATH with this environment's own programs and no compiler."""
    folder.mkdir()
    for name in ("cmake", "ninja"):
        if found := shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"):
            (folder / name).symlink_to(found)
    return str(folder)


@has_build_tools
def test_the_source_distribution_holds_what_the_library_is_built_and_tested_with(checkout: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    files = {str(path.relative_to(checkout)) for name in FOLDERS for path in (checkout / name).rglob("*") if path.is_file()}
    wanted = {name for name in files if not name.startswith(("benchmarks/results/", "hifuse_fast/_"))}
    assert not {*wanted, *FILES} - held
    built = ("hifuse_fast/_C", "hifuse_fast/_cuda", "hifuse_fast/_native_skipped", "dist", "build")
    assert not [name for name in held if name.startswith(built)]


@has_build_tools
def test_without_a_compiler_it_is_pure_python_and_says_so(checkout: Path, sdist: Path, tmp_path: Path) -> None:
    path, site = path_without_compilers(tmp_path / "bin"), tmp_path / "site"
    wheel, said = make_wheel(sdist, tmp_path / "wheels", PATH=path)
    assert "installing pure Python, without the compiled kernels: no C++ compiler was found" in said
    held = {name.removeprefix("hifuse_fast/") for name in zipfile.ZipFile(wheel).namelist() if name.startswith("hifuse_fast/")}
    sources = {str(file.relative_to(checkout / "hifuse_fast")) for file in (checkout / "hifuse_fast").rglob("*.py")}
    assert held == sources | DATA | {"_native_skipped.txt", "_cuda_skipped.txt"}

    install(wheel, site)
    info, rows = said_by_command(site, tmp_path)
    assert "no C++ compiler was found" in info
    assert [row["error"] for row in rows] == [""]


@has_build_tools
def test_a_library_that_is_asked_for_and_cannot_be_built_is_an_error(checkout: Path, tmp_path: Path) -> None:
    environment = clean({"PATH": path_without_compilers(tmp_path / "bin"), "HIFUSE_NATIVE": "1"})
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=checkout, env=environment, check=False)
    assert done.returncode != 0
    assert "cannot build the compiled library: no C++ compiler" in done.stderr


@pytest.mark.slow
@has_build_tools
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_with_a_compiler_the_library_is_in_the_wheel(sdist: Path, tmp_path: Path) -> None:
    """Of what the source distribution holds, and of nothing else."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,), site = tmp_path.iterdir(), tmp_path / "site"
    wheel, _ = make_wheel(source, tmp_path / "wheels", HIFUSE_NATIVE="1", HIFUSE_CUDA="0", CMAKE_ARGS=QUICK)
    assert not list((source / "hifuse_fast").glob("*.so")), "a build leaves the sources as they were"
    held = [name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("hifuse_fast/_")]
    names = ["_C", "__init__", "_cuda_skipped", "_version"]
    assert sorted(name.split(".")[0].removeprefix("hifuse_fast/") for name in held) == names

    install(wheel, site)
    code = "from hifuse_fast.backends.native import library; print(library.why_missing, library.lib.__file__)"
    missing, place = python(site, "-c", code).split()
    assert missing == "None"
    assert place.startswith(str(site))
    info, rows = said_by_command(site, tmp_path)
    assert f"native library          {place}" in info
    assert [row["error"] for row in rows] == [""]


@pytest.mark.slow
@has_build_tools
@pytest.mark.skipif(shutil.which("c++") is None or shutil.which("nvcc") is None, reason="no C++ or no CUDA compiler")
def test_with_a_cuda_compiler_the_kernels_are_in_the_wheel(sdist: Path, tmp_path: Path) -> None:
    """For one architecture; also beside a torch without CUDA, where they are asked for. It is imported without a driver."""
    site, quick = tmp_path / "site", {"TORCH_CUDA_ARCH_LIST": "7.5 8.0", "CMAKE_ARGS": "-DCMAKE_CUDA_FLAGS=-Xptxas=-O0"}
    wheel, _ = make_wheel(sdist, tmp_path / "wheels", HIFUSE_NATIVE="0", HIFUSE_CUDA="1", **quick)
    held = [name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("hifuse_fast/_c")]
    assert [name.split(".")[0] for name in held] == ["hifuse_fast/_cuda"]

    install(wheel, site)
    code = (
        "from hifuse_fast.backends.cuda import library; print(library.why_missing, library.lib.build_info()['architectures'])"
    )
    assert python(site, "-c", code, HIFUSE_CUDA_EMULATED="0").split() == ["None", "80-real"]


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


def nvcc(folder: Path) -> str:
    """A CUDA compiler, which would say so if it were called."""
    program = folder / "bin" / "nvcc"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return str(program)


@pytest.fixture
def without_cuda(build: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine without a CUDA compiler, and with a torch that has no CUDA, whatever this one has."""
    for name in ("HIFUSE_CUDA", "HIFUSE_NATIVE", "CUDACXX", "CUDAHOSTCXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    inside: dict[str, Any] = build["cuda"].__globals__
    monkeypatch.setitem(inside, "FIND_NVCC", "print('[]')")
    monkeypatch.setitem(inside, "find_compiler", lambda: "/usr/bin/c++")
    monkeypatch.setitem(inside, "find_torch", lambda: {"version": "2.13.0+cpu", "cuda": None})
    return inside


@has_build_tools
def test_where_the_cuda_compiler_is_looked_for(
    build: dict[str, Any], without_cuda: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find: Callable[[], str] = build["find_nvcc"]
    with pytest.raises(build["MissingError"], match="no CUDA compiler was found: nvcc of CUDA_HOME, of PATH or of the PyPI"):
        find()
    package, path, home, named = (nvcc(tmp_path / name) for name in ("package", "path", "home", "named"))
    monkeypatch.setitem(without_cuda, "FIND_NVCC", f"print('[\"{package}\"]')")
    assert find() == package
    monkeypatch.setenv("PATH", str(Path(path).parent))
    assert find() == path
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert find() == home
    monkeypatch.setenv("CUDACXX", named)
    assert find() == named
    monkeypatch.setenv("CUDACXX", "no-such-compiler")
    with pytest.raises(build["MissingError"], match="CUDACXX=no-such-compiler was not found"):
        find()


@has_build_tools
def test_packages_of_the_cuda_compiler_are_found(build: dict[str, Any], tmp_path: Path) -> None:
    program = nvcc(tmp_path / "nvidia" / "cu13")
    done = subprocess.run(
        [sys.executable, "-c", build["FIND_NVCC"]], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert program in done.stdout


@has_build_tools
@pytest.mark.parametrize(
    ("wanted", "torch_cuda", "compiler", "expected"),
    [
        ("auto", None, True, "torch 2.13.0.cpu is a build without CUDA; HIFUSE_CUDA=1 builds it all the same"),
        ("auto", "13.0", False, "no CUDA compiler was found"),
        ("auto", "13.0", True, "AUTO"),
        ("0", "13.0", True, "HIFUSE_CUDA=0 asked for none"),
        ("1", None, True, "ON"),
        ("1", None, False, "no CUDA compiler was found"),
    ],
)
def test_when_the_cuda_kernels_are_built(
    build: dict[str, Any],
    without_cuda: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    torch_cuda: str | None,
    compiler: bool,
    expected: str,
) -> None:
    monkeypatch.setenv("HIFUSE_CUDA", wanted)
    monkeypatch.setitem(without_cuda, "find_torch", lambda: {"version": "2.13.0+cpu", "cuda": torch_cuda})
    if compiler:
        monkeypatch.setenv("PATH", str(Path(nvcc(tmp_path)).parent))
    if expected in ("ON", "AUTO"):
        found = build["cuda"]()
        assert found.options["HIFUSE_CUDA"] == expected
        assert found.environment == {"CUDACXX": str(tmp_path / "bin" / "nvcc"), "CUDAHOSTCXX": "/usr/bin/c++"}
    else:
        with pytest.raises(build["MissingError"], match=expected):
            build["cuda"]()


@has_build_tools
def test_the_runtime_of_the_cuda_packages_is_found(
    build: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have it in lib, where their nvcc does not look."""
    find: Callable[[str], dict[str, str]] = build["library_path"]
    program = nvcc(tmp_path)
    monkeypatch.delenv("LIBRARY_PATH", raising=False)
    assert find(program) == {}
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libcudart_static.a").touch()
    assert find(program) == {"LIBRARY_PATH": str(tmp_path / "lib")}
    monkeypatch.setenv("LIBRARY_PATH", "/else")
    assert find(program) == {"LIBRARY_PATH": f"{tmp_path / 'lib'}{os.pathsep}/else"}


@has_build_tools
def test_pure_python_is_without_cuda_too_unless_it_is_asked_for(
    build: dict[str, Any], without_cuda: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIFUSE_NATIVE", "0")
    with pytest.raises(build["MissingError"], match="HIFUSE_NATIVE=0 asked for pure Python"):
        build["cuda"]()
    monkeypatch.setenv("HIFUSE_CUDA", "yes")
    with pytest.raises(SystemExit, match="HIFUSE_CUDA must be 0, 1 or auto, got 'yes'"):
        build["cuda"]()


@has_build_tools
def test_cuda_kernels_that_are_asked_for_and_cannot_be_built_are_an_error(checkout: Path, tmp_path: Path) -> None:
    environment = clean({"PATH": path_without_compilers(tmp_path / "bin"), "HIFUSE_NATIVE": "0", "HIFUSE_CUDA": "1"})
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=checkout, env=environment, check=False)
    assert done.returncode != 0
    assert "cannot build the CUDA kernels: no C++ compiler" in done.stderr


def test_the_build_asks_for_no_torch() -> None:
    """Else pip would download a second one, of several GB, into its isolated environment."""
    import tomllib

    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert not [name for name in requires if name.startswith("torch")]
