"""Builds hifuse_fast._C, the kernels for CPUs, and hifuse_fast._cuda by driving CMake; or installs without and says why.

All compile knowledge is in CMakeLists.txt. This file finds a torch to compile against, compilers, CMake and Ninja.

Torch comes from the environment that is being installed into, also under build isolation: an isolated build would otherwise
download a second torch of several GB. `HIFUSE_NATIVE=0` installs pure Python; `HIFUSE_NATIVE=1` makes it an error that a
compiler or torch is missing. `HIFUSE_CUDA=0` leaves the CUDA kernels out; `HIFUSE_CUDA=1` makes it an error that they cannot be
built; without it they are built where there are a CUDA compiler and a torch for CUDA. `HIFUSE_SANITIZE=1` builds with the
sanitizers (`make test-asan`). `HIFUSE_BUILD` is the folder to build in; without it `build/<interpreter>-torch<version>`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()

# Run without the variables by which pip hides the environment's own packages from an isolated build.
FIND_TORCH = """
import importlib.util, json, pathlib, re
root = pathlib.Path(importlib.util.find_spec("torch").origin).parent
text = (root / "version.py").read_text()
version = re.search(r"__version__ = '([^']+)'", text)[1]
cuda = re.search(r"^cuda\\b.*= '([^']+)'", text, re.M)
print(json.dumps({"include": str(root / "include"), "lib": str(root / "lib"), "version": version, "cuda": cuda and cuda[1]}))
"""
# The CUDA compiler of the PyPI packages nvidia-cuda-nvcc, where they lie in that environment.
FIND_NVCC = """
import importlib.util, json, pathlib
spec = importlib.util.find_spec("nvidia")
roots = sorted(map(pathlib.Path, spec.submodule_search_locations)) if spec else []
print(json.dumps([str(path) for root in roots for path in sorted(root.glob("*/bin/nvcc"), reverse=True)]))
"""


class MissingError(Exception):
    """This machine cannot have a compiled library; the package works without it."""


def asked(variable: str) -> str:
    """What the variable of a library says: "0", "1" or "auto"."""
    value = os.environ.get(variable, "auto")
    if value not in ("0", "1", "auto"):
        raise SystemExit(f"hifuse_fast: {variable} must be 0, 1 or auto, got {value!r}")
    return value


def of_environment(code: str) -> subprocess.CompletedProcess[str]:
    """What `code` prints in the environment that is being installed into."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False, cwd=ROOT.anchor
    )


def find_torch() -> dict[str, str]:
    """Where the headers and libraries of the environment's torch are, its version, and that of its CUDA if it has one."""
    found = of_environment(FIND_TORCH)
    if found.returncode:
        raise MissingError("torch was not installed when hifuse_fast was; install torch >= 2.11, then hifuse_fast again")
    torch: dict[str, str] = json.loads(found.stdout)
    if tuple(int(part) for part in torch["version"].split(".")[:2]) < (2, 11):
        raise MissingError(f"torch {torch['version']} is too old, 2.11 or newer is needed")
    return torch


def find_tool(name: str) -> str:
    """The path of `name` from PATH or from its PyPI package."""
    beside = Path(sys.executable).with_name(name)
    tool = shutil.which(name) or (str(beside) if beside.exists() else None)
    if tool is None:
        raise SystemExit(f"hifuse_fast: {name} was not found, which builds the compiled library: `pip install {name}`")
    return tool


def find_pybind11() -> str:
    """The directory of pybind11's CMake package."""
    try:
        import pybind11
    except ImportError:
        message = "hifuse_fast: pybind11 was not found, which builds the compiled library: `pip install pybind11`"
        raise SystemExit(message) from None
    directory: str = pybind11.get_cmake_dir()
    return directory


def find_compiler() -> str:
    """The C++ compiler: $CXX, or the first of c++, g++, clang++ on PATH."""
    if os.environ.get("CXX"):
        compiler = shutil.which(shlex.split(os.environ["CXX"])[0])
        if compiler is None:
            raise MissingError(f"the C++ compiler CXX={os.environ['CXX']} was not found")
        return compiler
    for name in ("c++", "g++", "clang++"):
        if compiler := shutil.which(name):
            return compiler
    raise MissingError("no C++ compiler was found (c++, g++, clang++, or the one that CXX names)")


def find_nvcc() -> str:
    """The CUDA compiler: $CUDACXX, or nvcc of CUDA_HOME, of PATH or of the PyPI package nvidia-cuda-nvcc."""
    if os.environ.get("CUDACXX"):
        compiler = shutil.which(os.environ["CUDACXX"])
        if compiler is None:
            raise MissingError(f"the CUDA compiler CUDACXX={os.environ['CUDACXX']} was not found")
        return compiler
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    packages: list[str] = json.loads(of_environment(FIND_NVCC).stdout or "[]")
    places = [*(os.path.join(home, "bin", "nvcc") for home in homes), "nvcc", *packages]
    for place in places:
        if compiler := shutil.which(place):
            return compiler
    raise MissingError("no CUDA compiler was found: nvcc of CUDA_HOME, of PATH or of the PyPI package nvidia-cuda-nvcc")


def library_path(nvcc: str) -> dict[str, str]:
    """The variable by which the CUDA runtime is found: the PyPI packages have it in lib, and their nvcc looks into lib64."""
    folder = Path(nvcc).parents[1] / "lib"
    if not (folder / "libcudart_static.a").exists():
        return {}
    return {"LIBRARY_PATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("LIBRARY_PATH")]))}


@dataclass(frozen=True)
class Build:
    """What CMake is told for one library: options, and variables of the environment."""

    options: dict[str, str]
    environment: dict[str, str]


def native() -> Build:
    """The library for CPUs."""
    if asked("HIFUSE_NATIVE") == "0":
        raise MissingError("HIFUSE_NATIVE=0 asked for pure Python")
    compiler, torch = find_compiler(), find_torch()
    paths = {"TORCH_INCLUDE": torch["include"], "TORCH_LIB": torch["lib"], "TORCH_VERSION": torch["version"]}
    return Build({"CMAKE_CXX_COMPILER": compiler, **paths}, {})


def cuda() -> Build:
    """The CUDA kernels."""
    wanted = asked("HIFUSE_CUDA")
    if wanted == "0":
        raise MissingError("HIFUSE_CUDA=0 asked for none")
    if wanted == "auto":
        if asked("HIFUSE_NATIVE") == "0":
            raise MissingError("HIFUSE_NATIVE=0 asked for pure Python")
        torch = find_torch()
        if not torch["cuda"]:
            raise MissingError(f"torch {torch['version']} is a build without CUDA; HIFUSE_CUDA=1 builds it all the same")
    compiler, nvcc = find_compiler(), find_nvcc()
    host = os.environ.get("CUDAHOSTCXX", compiler)
    return Build(
        {"CMAKE_CXX_COMPILER": compiler, "HIFUSE_CUDA": "ON" if wanted == "1" else "AUTO"},
        {"CUDACXX": nvcc, "CUDAHOSTCXX": host, **library_path(nvcc)},
    )


@dataclass(frozen=True)
class Library:
    """A compiled library, and what is said where it is missing."""

    target: str  #: of CMake, and the module
    variable: str  #: that asks for it
    skipped: str  #: the file in which the reason stays, for `hifuse_fast.info()`
    find: Callable[[], Build]
    name: str
    without: str


LIBRARIES = (
    Library(
        "_C",
        "HIFUSE_NATIVE",
        "_native_skipped.txt",
        native,
        "the compiled library",
        "pure Python, without the compiled kernels",
    ),
    Library("_cuda", "HIFUSE_CUDA", "_cuda_skipped.txt", cuda, "the CUDA kernels", "without the CUDA kernels"),
)


class CMakeBuild(build_ext):
    """`build_ext` that lets CMake build the extensions."""

    def run(self) -> None:
        builds: dict[Library, Build] = {}
        for library in LIBRARIES:
            self.place(library).with_name(library.skipped).unlink(missing_ok=True)
            try:
                builds[library] = library.find()
            except MissingError as missing:
                self.skip(library, str(missing))
        if builds:
            folder, environment = self.configure(list(builds.values()))
            for library in builds:
                self.build(library, folder, environment)

    def place(self, library: Library) -> Path:
        """Where the library goes: in the checkout for an editable install."""
        return Path(self.get_ext_fullpath(f"hifuse_fast.{library.target}")).resolve()

    def skip(self, library: Library, reason: str) -> None:
        """Install without the library, and leave the reason where `hifuse_fast.info()` finds it."""
        if asked(library.variable) == "1":
            raise SystemExit(f"hifuse_fast: cannot build {library.name}: {reason}") from None
        place = self.place(library)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.with_name(library.skipped).write_text(reason + "\n")
        self.extensions: list[Extension] = [each for each in self.extensions if each.name != f"hifuse_fast.{library.target}"]
        print(f"hifuse_fast: installing {library.without}: {reason}", file=sys.stderr, flush=True)

    def configure(self, builds: list[Build]) -> tuple[Path, dict[str, str]]:
        """Let CMake configure one folder for all libraries; the folder, and the environment to build it in."""
        sanitize = os.environ.get("HIFUSE_SANITIZE") == "1"
        options = {
            "CMAKE_MAKE_PROGRAM": find_tool("ninja"),
            "HIFUSE_PYTHON": "ON",
            "HIFUSE_TESTS": "OFF",
            "HIFUSE_CUDA": "OFF",
            "HIFUSE_SANITIZE": "ON" if sanitize else "OFF",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": find_pybind11(),
        }
        environment = dict(os.environ)
        for build in builds:
            options |= build.options
            environment |= build.environment
        name = f"{sys.implementation.cache_tag}-torch{options.get('TORCH_VERSION', '')}{'-sanitize' * sanitize}"
        folder = ROOT / os.environ.get("HIFUSE_BUILD", Path("build", name))
        extra = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        defined = [f"-D{key}={value}" for key, value in options.items()]
        # The tools of an isolated build lie in a new place each time: a cache that names the old one must go.
        command = [find_tool("cmake"), "--fresh", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *defined, *extra]
        subprocess.run(command, check=True, env=environment)
        return folder, environment

    def build(self, library: Library, folder: Path, environment: dict[str, str]) -> None:
        """Build one library and put it in its place. CUDA kernels that nobody asked for keep nothing from being installed."""
        reason = folder / "cuda_skipped.txt"
        if library.target == "_cuda" and reason.exists():
            self.skip(library, reason.read_text().strip())
            return
        command = [find_tool("cmake"), "--build", str(folder), "--target", library.target]
        may_fail = library.target == "_cuda" and asked(library.variable) == "auto"
        if subprocess.run(command, check=not may_fail, env=environment).returncode:
            self.skip(library, f"{environment['CUDACXX']} could not compile them; `HIFUSE_CUDA=1 pip install -v` shows why")
            return
        place, built = self.place(library), next(folder.glob(f"{library.target}.*"))
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built, place.with_suffix(".tmp"))
        place.with_suffix(".tmp").replace(place)  # a running process keeps the library it has loaded


setup(
    ext_modules=[Extension(f"hifuse_fast.{library.target}", sources=[]) for library in LIBRARIES],
    cmdclass={"build_ext": CMakeBuild},
)
