"""What the library for C refuses: wrong calls, and files that do not fit. None is a crash."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from hifuse_fast import load_optimized
from tests.support.c_library import (
    Header,
    build_programs,
    call,
    changed_calls,
    changed_metadata,
    changed_tensor,
    cmake,
    images,
    mutants,
    needs_library,
    output,
    parts,
    write,
)
from tests.support.paths import ROOT

pytestmark = needs_library
#: What a file for "cuda" is told where there is no device; where there is one, this file is for a CPU.
WITHOUT_DEVICE = ("this library was built without CUDA", "there is no CUDA device", "network ")


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
        *(WITHOUT_DEVICE, "params must not be NULL"),
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


def test_files_that_do_not_fit_are_named(saved: Path, programs: Path, tmp_path: Path) -> None:
    header, tensors = parts(saved)
    configuration = json.loads(header["__metadata__"]["configuration"])
    linear = next(i for i, each in enumerate(json.loads(header["__metadata__"]["calls"])) if each["op"] == "linear")
    cases: list[tuple[Header, str]] = [
        (header, "runs"),
        (changed_metadata(header, format="pt"), "it was not written by OptimizedHiFuse.save"),
        (changed_metadata(header, version="6"), "version must be 10, got 6: optimise the model again"),
        (changed_metadata(header, calls=None), "it has no list of calls"),
        (changed_metadata(header, backend="cuda"), 'frozen for "cuda": open it by hifuse_network_open_cuda'),
        (changed_metadata(header, backend="rocm"), "backend must be native or cuda, got rocm"),
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
        (changed_tensor(header, dtype="C64"), "stem.bias: dtype must be F32, BF16, F16 or I8, got C64"),
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


def test_no_file_is_a_crash(saved: Path, programs: Path, tmp_path: Path) -> None:
    paths = [*mutants(saved, tmp_path, 100, seed=0)]
    said = output(programs / "calls", "open", *paths)
    assert len(said) >= len(paths)
    assert 0 < said.count("runs") < len(said) / 2


@pytest.mark.slow
def test_none_of_many_files_is_a_crash(saved: Path, programs: Path, tmp_path: Path) -> None:
    runs = 0
    for seed in range(20):
        runs += output(programs / "calls", "open", *mutants(saved, tmp_path, 100, seed + 1)).count("runs")
    assert 0 < runs < 1000


@pytest.mark.slow
def test_sanitizers_find_nothing(saved: Path, tmp_path: Path) -> None:
    """The plain instruction set alone, which is compiled in a minute or two."""
    options = [f"-DCOMPILER_KNOWS_{isa}=OFF" for isa in ("avx2", "avx512", "avx512_bf16", "amx")]
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
