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
    """Files that were damaged, cut short or edited: bytes, the header's text, its tensors, its metadata, the list of calls."""
    kinds = (_other_bytes, _other_text, _other_tensor, _other_metadata, _other_arguments, _other_maps, _other_order)
    header, tensors = parts(path)
    for i in range(count):
        chosen = random.Random(f"{seed} {i}")  # so that one of many can be looked at alone
        to = folder / f"mutant{i}"
        chosen.choice(kinds)(chosen, path, to, copy.deepcopy(header), tensors)
        yield to


_VALUES: list[Any] = [
    *(0, 1, 2, 3, 5, 31, 64, -1, 2**31, 2**53, 2**64, -(2**63), 0.5, -0.0, 1e300, 1e-300, True, False, None),
    *("", "images", "stem.bias", "fu1.mlp.expand", "x" * 5000, [], [0, 0, 1], [[0, 0, 1]] * 4, {}, {"a": []}),
]
_OF_MAPS = (0, 1, 2, 3, 4, 8, 12, 16, 20, 24, 32, 96, 4095, 4096, 2**31 - 1, 10**9, -1)  # slots, divisors, channels
_OF_JSON = ('"', "\\", "\\u0000", "\\ud800", "{", "[" * 70, "]", ",", ":", "null", "1e999", "-", "\n", "\x01", "é", "")


def _other_bytes(chosen: random.Random, path: Path, to: Path, *_: Any) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(chosen.choice((0, 1, 4, 64))):
        content[chosen.randrange(min(len(content), chosen.choice((16, 20000))))] = chosen.randrange(256)
    to.write_bytes(content[: chosen.choice((len(content), chosen.randrange(len(content))))])


def _other_text(chosen: random.Random, path: Path, to: Path, header: Header, tensors: bytes) -> None:
    """Of JSON, a piece is taken out, doubled, or replaced by what its grammar knows."""
    text = json.dumps(header)
    at = chosen.randrange(len(text))
    end = min(len(text), at + chosen.choice((1, 3, 40)))
    changed = (text[:at] + chosen.choice((text[at:end] * 2, *_OF_JSON)) + text[end:]).encode()
    length = len(changed) + chosen.choice((0, 0, 0, 1, -1, 8))
    to.write_bytes(struct.pack("<Q", max(0, length)) + changed + tensors)


def _other_tensor(chosen: random.Random, path: Path, to: Path, header: Header, tensors: bytes) -> None:
    name, other = chosen.sample([name for name in header if name != "__metadata__"], 2)
    key = chosen.choice(("dtype", "shape", "data_offsets", "name", "all"))
    if key == "name":
        header[chosen.choice((name + "x", other))] = header.pop(name)
    elif key == "all":
        header[name] = chosen.choice([header[other], *_VALUES])
    else:
        size = len(tensors)
        offsets = [[0, 64], [64, 0], [size - 1, size], [size, size], [0, size], [0, 2**63], header[other]["data_offsets"]]
        header[name][key] = chosen.choice([*_VALUES, "F32", "BF16", "I8", "F64", [2, 2], [2**31, 2**31, 0], *offsets])
    write(to, header, tensors)


def _other_metadata(chosen: random.Random, path: Path, to: Path, header: Header, tensors: bytes) -> None:
    metadata = header["__metadata__"]
    key = chosen.choice([*metadata, "hifuse_fast.record", "configuration"])
    if key == "configuration":
        configuration = json.loads(metadata[key])
        configuration[chosen.choice(("in_chans", "dtype", "num_classes"))] = chosen.choice([*_VALUES, "bfloat16", "float16"])
        metadata[key] = json.dumps(configuration)
    else:
        metadata[key] = chosen.choice(
            [*_VALUES, *map(json.dumps, _VALUES), '{"classes": ["a"]}', '{"images": {"preprocess": 1}}']
        )
    write(to, header, tensors)


def _with_calls(to: Path, header: Header, tensors: bytes, calls: Any) -> None:
    header["__metadata__"]["calls"] = json.dumps(calls)
    write(to, header, tensors)


def _other_arguments(chosen: random.Random, path: Path, to: Path, header: Header, tensors: bytes) -> None:
    calls = json.loads(header["__metadata__"]["calls"])
    names = [name for name in header if name != "__metadata__"]
    for _ in range(chosen.choice((1, 1, 3))):
        call = chosen.choice(calls)
        key = chosen.choice([*call, "more"])
        call[key] = chosen.choice([*_VALUES, *names, *chosen.choice(calls).values()])
        if chosen.random() < 0.1:
            del call[key]
    _with_calls(to, header, tensors, calls)


def _other_maps(chosen: random.Random, path: Path, to: Path, header: Header, tensors: bytes) -> None:
    calls = json.loads(header["__metadata__"]["calls"])
    for _ in range(chosen.choice((1, 1, 2, 5))):
        lists = [value for value in chosen.choice(calls).values() if isinstance(value, list) and value]
        for found in chosen.sample(lists, min(1, len(lists))):
            inner = found[0] if isinstance(found[0], list) else found
            inner[chosen.randrange(len(inner))] = chosen.choice(_OF_MAPS)
    _with_calls(to, header, tensors, calls)


def _other_order(chosen: random.Random, path: Path, to: Path, header: Header, tensors: bytes) -> None:
    calls = json.loads(header["__metadata__"]["calls"])
    one, other = chosen.sample(range(len(calls)), 2)
    kind = chosen.randrange(4)
    if kind == 0:
        del calls[one]
    elif kind == 1:
        calls[one], calls[other] = calls[other], calls[one]
    elif kind == 2:
        calls.insert(one, copy.deepcopy(calls[other]))
    else:  # one op with the arguments of another one
        calls[one]["op"] = calls[other]["op"]
    _with_calls(to, header, tensors, calls)
