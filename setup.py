"""Builds hifuse_fast._C by driving CMake, or installs pure Python and says why.

All compile knowledge is in CMakeLists.txt. This file finds a torch to compile against, a compiler, CMake and Ninja.

Torch comes from the environment that is being installed into, also under build isolation: an isolated build would otherwise
download a second torch of several GB. `HIFUSE_NATIVE=0` installs pure Python; `HIFUSE_NATIVE=1` makes it an error that a
compiler or torch is missing; `HIFUSE_SANITIZE=1` builds with the sanitizers (`make test-asan`); `HIFUSE_BUILD` is the folder
to build in, `build/<interpreter>-torch<version>` where it is not set.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()

# Run without the variables by which pip hides the environment's own packages from an isolated build.
FIND_TORCH = """
import importlib.util, json, pathlib, re
root = pathlib.Path(importlib.util.find_spec("torch").origin).parent
version = re.search(r"__version__ = '([^']+)'", (root / "version.py").read_text())[1]
print(json.dumps({"include": str(root / "include"), "lib": str(root / "lib"), "version": version}))
"""


class MissingError(Exception):
    """This machine cannot have the compiled library; the package works without it."""


def find_torch() -> dict[str, str]:
    """Where the headers and libraries of the environment's torch are, and its version."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    found = subprocess.run(
        [sys.executable, "-c", FIND_TORCH], capture_output=True, text=True, env=environment, check=False, cwd=ROOT.anchor
    )
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


class CMakeBuild(build_ext):
    """`build_ext` that lets CMake build the one extension."""

    def run(self) -> None:
        self.target = Path(self.get_ext_fullpath("hifuse_fast._C")).resolve()  # in the checkout for an editable install
        self.skipped = self.target.with_name("_native_skipped.txt")
        self.skipped.unlink(missing_ok=True)
        wanted = os.environ.get("HIFUSE_NATIVE", "auto")
        try:
            if wanted == "0":
                raise MissingError("HIFUSE_NATIVE=0 asked for pure Python")
            compiler, torch = find_compiler(), find_torch()
        except MissingError as missing:
            if wanted == "1":
                raise SystemExit(f"hifuse_fast: cannot build the compiled library: {missing}") from None
            self.skip(str(missing))
            return
        self.build_with_cmake(compiler, torch)

    def skip(self, reason: str) -> None:
        """Install without the library, and leave the reason where `hifuse_fast.info()` finds it."""
        self.skipped.parent.mkdir(parents=True, exist_ok=True)
        self.skipped.write_text(reason + "\n")
        self.extensions: list[Extension] = []
        print(f"hifuse_fast: installing pure Python, without the compiled kernels: {reason}", file=sys.stderr, flush=True)

    def build_with_cmake(self, compiler: str, torch: dict[str, str]) -> None:
        cmake = find_tool("cmake")
        sanitize = os.environ.get("HIFUSE_SANITIZE") == "1"
        name = f"{sys.implementation.cache_tag}-torch{torch['version']}{'-sanitize' * sanitize}"
        build = ROOT / os.environ.get("HIFUSE_BUILD", Path("build", name))
        options = {
            "CMAKE_MAKE_PROGRAM": find_tool("ninja"),
            "CMAKE_CXX_COMPILER": compiler,
            "HIFUSE_PYTHON": "ON",
            "HIFUSE_TESTS": "OFF",
            "HIFUSE_SANITIZE": "ON" if sanitize else "OFF",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": find_pybind11(),
            "TORCH_INCLUDE": torch["include"],
            "TORCH_LIB": torch["lib"],
            "TORCH_VERSION": torch["version"],
        }
        extra = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        defined = [f"-D{key}={value}" for key, value in options.items()]
        # The tools of an isolated build lie in a new place each time: a cache that names the old one must go.
        configure = [cmake, "--fresh", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", *defined, *extra]
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build), "--target", "_C"], check=True)
        built = next(build.glob("_C.*"))
        self.target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built, self.target.with_suffix(".tmp"))
        self.target.with_suffix(".tmp").replace(self.target)  # a running process keeps the library it has loaded


setup(ext_modules=[Extension("hifuse_fast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
