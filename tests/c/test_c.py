"""The library for C: built, installed and called by a program that has no Python and no torch."""

from __future__ import annotations

import copy
import csv
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

from hifuse_fast import (
    OptimizedHiFuse,
    create_model_from_checkpoint,
    load_optimized,
    ops,
    optimize_for_inference,
    save_checkpoint,
)
from hifuse_fast.backends.native.algorithms import ALGORITHMS
from hifuse_fast.backends.native.library import lib
from hifuse_fast.cli import main
from hifuse_fast.inference.make import Packer
from hifuse_fast.inference.source import read_source
from hifuse_fast.ops.prepared.linear.native import Linear
from hifuse_fast.ops.prepared.local_block.native import LocalBlock
from hifuse_fast.ops.prepared.mlp.native import Mlp
from hifuse_fast.testing import golden_uniform
from tests.support.frozen import VARIANTS, make
from tests.support.paths import ROOT

BUILD = ROOT / os.environ.get("HIFUSE_BUILD", "build/native")
HERE = Path(__file__).parent
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # CMake and Ninja may be Python's
HEADS: dict[str, Any] = {"num_heads": (1, 1, 2, 4)}  # wide enough for the kernels
QUICK: dict[str, Any] = {**HEADS, "depths": (1, 1, 1, 1), "conv_depths": (1, 1, 1, 1)}

pytestmark = [
    pytest.mark.skipif(lib is None, reason="the compiled library is not built"),
    pytest.mark.skipif(not (BUILD / "libhifuse.so").exists(), reason=f"{BUILD} has no library for C: run make test-cpp"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
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


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_programs(BUILD, tmp_path_factory.mktemp("c"))


def call(program: Path, *arguments: object, isa: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program without the environment, and so without what leads to Python and torch."""
    assert lib is not None
    environment |= {"ATEN_CPU_CAPABILITY": isa or str(lib.isa())}
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)


def output(program: Path, *arguments: object, isa: str | None = None) -> list[str]:
    done = call(program, *arguments, isa=isa)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def images(batch: int, channels: int, height: int, width: int) -> Tensor:
    return (2 * golden_uniform("images of C", (batch, channels, height, width)) - 1).float()


def run(programs: Path, folder: Path, network: Path, x: Tensor, threads: int, isa: str | None = None) -> Tensor:
    """The results of C, widened to float32."""
    dtype = str(x.dtype).removeprefix("torch.")
    (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy().tofile(folder / "images")
    batch, _, height, width = x.shape
    call_of_run = (network, folder / "images", dtype, batch, height, width, threads, folder / "results")
    output(programs / "calls", "run", *call_of_run, isa=isa)
    return torch.from_numpy(np.fromfile(folder / "results", np.float32)).view(batch, -1)


WIDE = {**QUICK, "dims": (8, 16, 64, 128), "num_heads": (1, 2, 2, 4), "window_size": 7}  # Strassen's products at the end
NETWORKS: dict[str, tuple[torch.dtype, str, dict[str, Any]]] = {
    "plain": (torch.float32, "auto", HEADS),
    "bfloat16": (torch.bfloat16, "auto", {**QUICK, **VARIANTS["double sigmoid"], "window_size": 7}),
    "direct": (torch.float32, "direct", {**QUICK, **VARIANTS["depthwise"]}),
    "wide, features": (torch.float32, "auto", {**WIDE, "num_classes": 0, "qkv_bias": False}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_gives_the_bits_of_python(name: str, programs: Path, tmp_path: Path) -> None:
    """Of batches and sizes that were not there when the file was written, on one thread and on several."""
    dtype, algorithm, options = NETWORKS[name]
    network = optimize_for_inference(make(torch.float32, **options), dtype, backend="native", algorithm=algorithm)
    network.save(tmp_path / "x.safetensors")
    for batch, height, width, threads in ((1, 33, 90, 0), (3, 64, 32, 3), (2, 1, 1, 2)):
        x = images(batch, 2, height, width)
        for given in {dtype: x.to(dtype), torch.float32: x}.values():
            expected = network(given)
            assert isinstance(expected, Tensor)
            assert torch.equal(run(programs, tmp_path, tmp_path / "x.safetensors", given, threads), expected.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_gives_the_bits_of_int8(dtype: torch.dtype, programs: Path, tmp_path: Path) -> None:
    """Every linear, local block and MLP in 8 bits, by scales that nobody calibrated."""
    model = make(torch.float32, **QUICK)
    plain = optimize_for_inference(model, dtype, backend="native")
    scales = {
        name: {"input_scale": 0.03, **({"hidden_scale": 0.02} if isinstance(op, Mlp) else {})}
        for name, op in plain._made.items()
        if isinstance(op, (Linear, LocalBlock, Mlp))
    }
    network = OptimizedHiFuse(plain.configuration, Packer(read_source(model).weights, dtype, "native", scales))
    network.save(tmp_path / "x.safetensors")
    x = images(3, 2, 40, 70)
    result = network(x)
    assert isinstance(result, Tensor)
    assert torch.equal(run(programs, tmp_path, tmp_path / "x.safetensors", x, 2), result.float())


@pytest.mark.slow
def test_it_gives_the_bits_of_every_instruction_set(programs: Path, tmp_path: Path) -> None:
    assert lib is not None
    before = lib.isa()
    for dtype in (torch.float32, torch.bfloat16):
        network = optimize_for_inference(make(torch.float32, **WIDE), dtype, backend="native")
        network.save(tmp_path / "x.safetensors")
        x = images(3, 2, 224, 97)
        for isa in lib.usable_isas():
            lib.select_isa(isa)
            try:
                expected = network(x)
            finally:
                lib.select_isa(before)
            assert isinstance(expected, Tensor)
            assert torch.equal(run(programs, tmp_path, tmp_path / "x.safetensors", x, 3, isa), expected.float()), isa


@pytest.mark.parametrize("algorithm", ["direct", "winograd2", "winograd4", "winograd4_at_call"])
def test_ops_and_packing(algorithm: str, programs: Path, tmp_path: Path) -> None:
    """A linear and a mixer, whose weights C packs."""
    channels = 40
    weight = (golden_uniform("filters", (channels, channels, 3, 3)) - 0.5).float()
    x = images(2, 9, 11, channels)
    weight.numpy().tofile(tmp_path / "weight")
    x.numpy().tofile(tmp_path / "x")
    output(programs / "calls", "ops", tmp_path / "weight", tmp_path / "x", tmp_path / "out", ALGORITHMS[algorithm], *x.shape)
    bias = x.flatten()[:channels]
    options: Any = {"norm": "row", "eps": 1e-6, "activation": "gelu", "algorithm": "direct", "dtype": torch.float32}
    linear = ops.prepare_linear(weight[:, :, 0, 0].contiguous(), bias, backend="native", **options)
    between = linear(x, residual=x)
    out = torch.empty_like(x)
    number = ALGORITHMS[algorithm]
    packed = torch.ops.hifuse_fast.pack_mixer(weight, torch.float32, number)
    torch.ops.hifuse_fast.mixer_out(between, packed, out, number)
    assert torch.equal(torch.from_numpy(np.fromfile(tmp_path / "out", np.float32)).view(out.shape), out)


def test_the_example_says_what_predict_says(programs: Path, tmp_path: Path) -> None:
    record = {
        "classes": ["a", 'say "b"', "größe", "d", "e"],
        "images": {
            "preprocess": {"image_size": 40, "resize": 40, "mean": (0.3, 0.4, 0.5), "std": (0.2, 0.3, 0.7)},
            **{"bits": 8, "exif_orientation": False, "greyscale": False},
        },
    }
    save_checkpoint(make(torch.float32, in_chans=3, **QUICK), tmp_path / "x.safetensors", record)
    trained = create_model_from_checkpoint(tmp_path / "x.safetensors")
    optimize_for_inference(trained.eval(), backend="native").save(tmp_path / "x.safetensors")
    pixels = (golden_uniform("pixels", (40, 40, 3)).numpy() * 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.ppm")
    arguments = ["predict", str(tmp_path / "x.ppm"), "--checkpoint", str(tmp_path / "x.safetensors")]
    told = CliRunner().invoke(main, arguments)
    assert told.exit_code == 0, told.output
    (expected,) = csv.DictReader(told.stdout.splitlines())
    mean, std = (torch.tensor(record["images"]["preprocess"][name])[:, None, None] for name in ("mean", "std"))  # type: ignore[index]
    prepared = (torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - mean) / std
    prepared.contiguous().numpy().tofile(tmp_path / "x.f32")
    example = programs / "example" / "hifuse_predict"
    for image in ((tmp_path / "x.ppm",), (tmp_path / "x.f32", 40, 40)):
        (actual,) = csv.DictReader(output(example, tmp_path / "x.safetensors", *image))
        assert list(actual) == list(expected)
        for key, value in actual.items():
            if key.startswith("p"):
                continue
            assert value == expected[key], key
        for key in (key for key in actual if key.startswith("p(") or key == "probability"):
            assert float(actual[key]) == pytest.approx(float(expected[key]), abs=1e-6), key


def test_nothing_of_python_is_near(programs: Path) -> None:
    """Neither the programs nor the library load torch or Python, and the library shows its own functions alone."""
    library = programs.parent / "prefix" / "lib" / "libhifuse.so"
    for file in (programs / "calls", library):
        loaded = subprocess.run(["ldd", str(file)], capture_output=True, text=True, check=True).stdout
        assert "not found" not in loaded
        assert not re.search(r"torch|libc10|python|gomp", loaded)
    shown = subprocess.run(["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1] for line in shown.splitlines()}
    header = (ROOT / "include" / "hifuse" / "hifuse.h").read_text()
    assert names == {name for name in names if name.startswith("hifuse_") and f" {name}(" in header.replace("*", " ")}
    assert {"hifuse_network_run", "hifuse_linear", "hifuse_pack_filters"} <= names


def test_the_header_is_c_and_cpp() -> None:
    header = ROOT / "include" / "hifuse" / "hifuse.h"
    for language in (["cc", "-std=c99", "-x", "c"], ["c++", "-std=c++11", "-x", "c++"]):
        command = [*language, "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", str(header)]
        assert subprocess.run(command, capture_output=True, text=True, check=False).stderr in ("", None)


# ---- What is refused -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "x.safetensors"
    narrow = {**QUICK, "dims": (8, 8, 8, 8), "num_heads": (1, 1, 1, 1)}
    optimize_for_inference(make(torch.float32, **narrow), backend="native").save(path)
    return path


def test_wrong_calls_name_the_argument(programs: Path, saved: Path) -> None:
    said = iter(output(programs / "calls", "misuse", saved))
    for expected in (
        *("network must not be NULL", "path must not be NULL", "network must not be NULL", "images must not be NULL"),
        *("results must not be NULL", "images.dtype must be HIFUSE_FLOAT32 or that of the network, got 1"),
        *("images.dtype must be HIFUSE_FLOAT32 or that of the network, got 7", "images.data must not be NULL"),
        *("images.batch must be at least 0, got -1", "images.height must be from 1 to 2147483647, got 0"),
        *("images.width must be from 1 to 2147483647, got 9223372036854775807", "images is too large"),
        "threads->count must be at least 1, got 0",
        "threads->run must call the task once for each of ",
        "threads->run must call the task for indices below ",
        *("threads->run must not be NULL", "nothing", "nothing", "nothing"),
        *("params must not be NULL", "dtype must be HIFUSE_FLOAT32 or HIFUSE_BFLOAT16, got 9"),
        *("pixels must be from 1 to 2147483647, got 0", "x must not be NULL", "x is too large"),
        *("maps[0] must not be NULL, as it has channels", "channels must be of maps from the first one on"),
        "algorithm HIFUSE_STRASSEN is of float32 and of a depth that is a multiple of 32, got a depth of 4",
        "algorithm must be HIFUSE_DIRECT, HIFUSE_STRASSEN or HIFUSE_INT8, got 2",
        "height and width must be even with pool, got 1 x 1",
        "norm HIFUSE_PIXEL_NORM is for rows of HIFUSE_PATCHES",
        *("eps must be finite and at least 0, got -1", "weight must not be NULL"),
        "out must not be z, whose neighbours are still read",
        "algorithm HIFUSE_WINOGRAD4_AT_CALL is of float32 alone",
        *("window_size must be from 1 to 16, got 17", "shift_size must be from 0 to 3, got 4"),
        "head_dim must be from 8 to 128, got 4",
        "algorithm HIFUSE_STRASSEN is of float32 and of a depth that is a multiple of 32, got a depth of 4",
        "block must be 0 or HIFUSE_MLP_BLOCK, got 5",
    ):
        message = next(said)
        assert message.startswith(expected), (message, expected)
    assert not list(said)


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


def test_files_that_do_not_fit_are_named(saved: Path, programs: Path, tmp_path: Path) -> None:
    header, tensors = parts(saved)
    configuration = json.loads(header["__metadata__"]["configuration"])
    linear = next(i for i, each in enumerate(json.loads(header["__metadata__"]["calls"])) if each["op"] == "linear")
    cases: list[tuple[Header, str]] = [
        (header, "runs"),
        (changed_metadata(header, format="pt"), "it was not written by OptimizedHiFuse.save"),
        (changed_metadata(header, version="6"), "version must be 7, got 6: optimise the model again"),
        (changed_metadata(header, calls=None), "it has no list of calls"),
        (changed_metadata(header, calls="[]"), "its list of calls must end with a map of one pixel"),
        (changed_metadata(header, calls="{}"), "calls must be an array, got an object"),
        (changed_metadata(header, calls="[" * 100), "JSON is damaged at byte 64: expected fewer brackets within brackets"),
        (changed_metadata(header, configuration='{"a": 1, "a": 2}'), "expected each key once"),
        (changed_metadata(header, configuration="{}"), "in_chans is missing"),
        (changed_metadata(header, configuration=json.dumps({**configuration, "dtype": "float16"})), "got float16"),
        (changed_metadata(header, configuration=json.dumps({**configuration, "in_chans": 3})), "weight must be"),
        (changed_metadata(header, configuration=json.dumps({**configuration, "num_classes": 7})), "num_classes must be 5"),
        ({key: value for key, value in header.items() if key != "stem.bias"}, "the tensor stem.bias is missing"),
        (changed_tensor(header, dtype="I8"), "stem.bias: data_offsets must be 16 bytes apart, got 64"),
        (changed_tensor(header, dtype="C64"), "stem.bias: dtype must be F32, BF16 or I8, got C64"),
        (changed_tensor(header, shape=[-1]), "stem.bias: shape must be an integer from 0"),
        (changed_tensor(header, shape=[2**31, 2**31]), "stem.bias: its shape is larger than the file"),
        (changed_tensor(header, data_offsets=[0, 10**15]), "stem.bias: data_offsets must be an integer from 0"),
        (changed_tensor(header, data_offsets=[64, 0]), "stem.bias: data_offsets must be an integer from 64"),
        (changed_tensor(header, data_offsets=[0.5, 64.5]), "stem.bias: data_offsets must be an integer"),
        (changed_calls(header, lambda c: c[0].update(op="steam")), "call 0 of its list, steam: this library has no such op"),
        (changed_calls(header, lambda c: c[0].update(more=1)), "call 0 of its list, stem: it has "),
        (changed_calls(header, lambda c: c[0].pop("bias")), "call 0 of its list, stem: bias is missing"),
        (changed_calls(header, lambda c: c[0].update(bias="stem.weight")), "bias must be 16 elements of F32"),
        (changed_calls(header, lambda c: c[0].update(images="else")), "images must be those of the network"),
        (changed_calls(header, lambda c: c[0]["local_map"].__setitem__(1, 3)), "per must divide 32, got 3"),
        (changed_calls(header, lambda c: c[0]["local_map"].__setitem__(1, 8)), "local_map must have the size"),
        (changed_calls(header, lambda c: c[0]["local_map"].__setitem__(0, 1)), "slot 1 is written and used"),
        (changed_calls(header, lambda c: c[0]["local_map"].__setitem__(0, 2**40)), "slot must be an integer from 0 to"),
        (changed_calls(header, lambda c: c.pop(0)), "is not what was written to slot"),
        (changed_calls(header, lambda c: c.pop()), "num_classes must be 8, as its list of calls says, got 5"),
        (changed_calls(header, lambda c: c[linear].update(rows=9)), "rows must be an integer from 0 to 1, got 9"),
        (changed_calls(header, lambda c: c[linear].update(eps="x")), "eps must be a number, got a string"),
        (changed_calls(header, lambda c: c[linear].update(maps=[])), "maps must be 1 to 3 maps, got 0"),
        (changed_calls(header, lambda c: c[linear].update(algorithm=1)), "HIFUSE_STRASSEN is of float32"),
    ]
    paths = [write(tmp_path / str(i), changed, tensors) for i, (changed, _) in enumerate(cases)]
    content = saved.read_bytes()
    for i, (damaged, reason) in enumerate(
        [
            (b"", "damaged: it has 0 bytes"),
            (content[:7], "damaged: it has 7 bytes"),
            (content[:100], "damaged: its header would be"),
            (content[:-1], "data_offsets must be an integer from"),
            (b"\xff" * 8 + content[8:], "damaged: its header would be 18446744073709551615 bytes long"),
            (struct.pack("<Q", 2) + b"[]", "its header is no object"),
            (struct.pack("<Q", 5) + b'{"a":', "JSON is damaged at byte 5: expected more"),
            (struct.pack("<Q", 2) + b"{}", "it was not written by OptimizedHiFuse.save"),
            (struct.pack("<Q", 8) + b'{"a": 1e', "expected"),
            (struct.pack("<Q", 7) + b'{"a\xff": ', "expected UTF-8"),
            (struct.pack("<Q", 9) + b'{"\\ud800"', "expected a whole character"),
            (struct.pack("<Q", 15) + b'{"\\u001b[m": 1}', "tensor ?[m: dtype is missing"),
        ]
    ):
        paths.append(tmp_path / f"damaged{i}")
        paths[-1].write_bytes(damaged)
        cases.append(({}, reason))
    paths += [tmp_path / "nowhere", tmp_path]
    cases += [({}, "nowhere: No such file or directory"), ({}, "is no file")]
    said = output(programs / "calls", "open", *paths)
    for (_, expected), message in zip(cases, said, strict=True):
        assert expected in message


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


def test_no_file_is_a_crash(saved: Path, programs: Path, tmp_path: Path) -> None:
    paths = [*mutants(saved, tmp_path, 80, seed=0)]
    said = output(programs / "calls", "open", *paths)
    assert len(said) >= len(paths)
    assert 0 < said.count("runs") < len(said) / 2


@pytest.mark.slow
def test_sanitizers_find_nothing(saved: Path, tmp_path: Path) -> None:
    """The plain instruction set alone, which is compiled in a minute or two."""
    options = [f"-DCOMPILER_KNOWS_{isa}=OFF" for isa in ("avx2", "avx512", "avx512_bf16")]
    options += ["-DHIFUSE_SANITIZE=ON", "-DHIFUSE_TESTS=OFF", "-DHIFUSE_CUDA=OFF", "-DCMAKE_BUILD_TYPE=Debug"]
    cmake("-S", ROOT, "-B", tmp_path / "library", "-G", "Ninja", *options)
    cmake("--build", tmp_path / "library", "--target", "hifuse")
    programs = build_programs(tmp_path / "library", tmp_path, "-DCMAKE_C_FLAGS=-fsanitize=address,undefined")
    paths = [saved, *mutants(saved, tmp_path, 600, seed=1)]
    environment = {"ASAN_OPTIONS": "allocator_may_return_null=1"}
    for first in range(0, len(paths), 100):
        done = call(programs / "calls", "open", *paths[first : first + 100], **environment)
        assert done.returncode == 0, done.stderr
    done = call(programs / "calls", "misuse", saved, **environment)
    assert done.returncode == 0, done.stderr
    x = images(3, 2, 33, 70)
    x.numpy().tofile(tmp_path / "images")
    arguments = (saved, tmp_path / "images", "float32", *(3, 33, 70), 3, tmp_path / "results")
    done = call(programs / "calls", "run", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    assert load_optimized(saved)(x).shape == (3, 5)
