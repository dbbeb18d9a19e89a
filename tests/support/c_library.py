"""What the tests of the library for C stand on: its programs, and files of networks that are changed."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from hifuse_fast.backends.native.library import lib
from hifuse_fast.testing import golden_uniform
from tests.support.paths import ROOT

BUILD = ROOT / os.environ.get("HIFUSE_BUILD", "build/native")
HERE = ROOT / "tests" / "c"
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # CMake and Ninja may be Python's
HEADS: dict[str, Any] = {"num_heads": (1, 1, 2, 4)}  # wide enough for the kernels
QUICK: dict[str, Any] = {**HEADS, "depths": (1, 1, 1, 1), "conv_depths": (1, 1, 1, 1)}

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
needs_library = [
    pytest.mark.skipif(lib is None, reason="the compiled library is not built"),
    pytest.mark.skipif(not (BUILD / "libhifuse.so").exists(), reason=f"{BUILD} has no library for C: run make test-cpp"),
    needs_compiler,
]


def cmake(*arguments: str | Path) -> None:
    command = [shutil.which("cmake", path=PATH) or "cmake", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": PATH}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def build_programs(library: Path, folder: Path, *options: str) -> Path:
    """The folder of the programs, built against the library of a build that is installed first."""
    cmake("--install", library, "--component", "hifuse", "--prefix", folder / "prefix")
    cmake("-S", HERE, "-B", folder / "programs", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={folder / 'prefix'}", *options)
    cmake("--build", folder / "programs")
    return folder / "programs"


def call(program: Path, *arguments: object, isa: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program without the environment, and so without what leads to Python and torch."""
    assert lib is not None
    environment |= {"ATEN_CPU_CAPABILITY": isa or str(lib.isa())}
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)


def output(program: Path, *arguments: object, isa: str | None = None, **environment: str) -> list[str]:
    done = call(program, *arguments, isa=isa, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def images(batch: int, channels: int, height: int, width: int) -> Tensor:
    return (2 * golden_uniform("images of C", (batch, channels, height, width)) - 1).float()


# ---- Files that are changed ------------------------------------------------------------------------------------------------

Header = dict[str, Any]


def parts(path: Path) -> tuple[Header, bytes]:
    """The header of a safetensors file, and its tensors."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write(path: Path, header: Header, tensors: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + tensors)
    return path


def changed_calls(header: Header, change: Callable[[list[Any]], object]) -> Header:
    """The header with another list of calls."""
    calls = json.loads(header["__metadata__"]["calls"])
    change(calls)
    return {**header, "__metadata__": {**header["__metadata__"], "calls": json.dumps(calls)}}


def changed_metadata(header: Header, **changes: str | None) -> Header:
    metadata = {**header["__metadata__"], **changes}
    return {**header, "__metadata__": {key: value for key, value in metadata.items() if value is not None}}


def changed_tensor(header: Header, **changes: Any) -> Header:
    return {**header, "stem.bias": {**header["stem.bias"], **changes}}


def mutants(path: Path, folder: Path, count: int, seed: int) -> Iterator[Path]:
    """Files in which something of the header is another one, or a few bytes are."""
    header, tensors = parts(path)
    calls = json.loads(header["__metadata__"]["calls"])
    chosen = random.Random(seed)
    values = [
        0,
        1,
        2,
        3,
        5,
        31,
        64,
        -1,
        2**31,
        2**53,
        0.5,
        1e300,
        True,
        None,
        "",
        "stem.bias",
        "fu1.mlp.expand",
        [],
        [0, 0, 1],
        {},
    ]
    for i in range(count):
        to = folder / f"mutant{i}"
        kind = chosen.randrange(4)
        if kind == 0:  # bytes of the file
            content = bytearray(path.read_bytes())
            for _ in range(chosen.choice((1, 4, 64))):
                content[chosen.randrange(min(len(content), 20000))] = chosen.randrange(256)
            to.write_bytes(content[: chosen.choice((len(content), chosen.randrange(len(content))))])
        elif kind == 1:  # a tensor's entry
            entries = copy.deepcopy(header)
            name = chosen.choice([name for name in entries if name != "__metadata__"])
            entries[name][chosen.choice(("dtype", "shape", "data_offsets"))] = chosen.choice(
                [*values, "F32", "I8", [2, 2], [0, 64]]
            )
            write(to, entries, tensors)
        else:  # arguments of calls, half of them among maps
            changed = copy.deepcopy(calls)
            for _ in range(chosen.choice((1, 1, 3))):
                call = chosen.choice(changed)
                key = chosen.choice(list(call))
                if kind == 2 or not isinstance(call[key], list) or not call[key]:
                    call[key] = chosen.choice(values)
                else:
                    inner = call[key][0] if isinstance(call[key][0], list) else call[key]
                    inner[chosen.randrange(len(inner))] = chosen.choice((0, 1, 2, 3, 4, 8, 16, 32, 12, 20, 24, 96, 4095, 10**9))
            write(to, changed_metadata(header, calls=json.dumps(changed)), tensors)
        yield to
