"""The library for C on an emulated CUDA device: the bits that Python gives there, its memory, and what it refuses."""

from __future__ import annotations

import csv
import functools
import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hifuse_fast import OptimizedHiFuse, load_optimized, ops, optimize_for_inference
from hifuse_fast.backends import tables
from hifuse_fast.backends.cuda import ends, library, sm90
from hifuse_fast.backends.cuda.launch import DEPENDENT_LAUNCHES
from hifuse_fast.backends.tape import Tape, recorded
from hifuse_fast.checkpoints.save import write_safetensors
from hifuse_fast.inference.calls import BACKEND, CALLS, list_calls
from hifuse_fast.inference.configuration import FORMAT, VERSION
from hifuse_fast.ops.prepared.base import PreparedOp
from hifuse_fast.ops.prepared.mixer.cuda import Mixer
from hifuse_fast.ops.prepared.mlp.cuda import Mlp
from hifuse_fast.ops.prepared.stem.cuda import Stem
from hifuse_fast.testing import golden_uniform
from tests.support.c_library import (
    BUILD,
    HERE,
    call,
    changed_calls,
    changed_metadata,
    images,
    mutants,
    needs_compiler,
    output,
    parts,
    write,
)
from tests.support.frozen import VARIANTS, narrow
from tests.support.kernels import uniform
from tests.support.paths import ROOT
from tests.support.prepared import matrix

LIBRARY = BUILD / "libhifuse_emulated.so"
SMALL: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2)}

pytestmark = [
    pytest.mark.skipif(not library.EMULATED or library.lib is None, reason="CUDA kernels are not emulated"),
    pytest.mark.skipif(not LIBRARY.exists(), reason=f"{BUILD} has no emulated library for C: run make test-cpp"),
    needs_compiler,
]


def compiled(source: Path, to: Path) -> Path:
    strict = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror"]
    linked = [str(LIBRARY), f"-Wl,-rpath,{LIBRARY.parent}", "-lpthread", "-lm"]
    subprocess.run(["cc", *strict, f"-I{ROOT / 'include'}", str(source), "-o", str(to), *linked], check=True)
    return to


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(HERE / "cuda_calls.c", tmp_path_factory.mktemp("cuda") / "cuda_calls")


@functools.cache
def small_network(dtype: torch.dtype) -> OptimizedHiFuse:
    return optimize_for_inference(narrow(**SMALL).float(), dtype, backend="cuda")


@pytest.fixture(scope="module")
def saved_cuda(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "x.safetensors"
    small_network(torch.bfloat16).save(path)
    return path


def run(program: Path, folder: Path, network: Path, x: Tensor, multiprocessors: int = 1) -> Tensor:
    (x if x.dtype == torch.float32 else x.view(torch.int16)).numpy().tofile(folder / "images")
    batch, _, height, width = x.shape
    dtype = str(x.dtype).removeprefix("torch.")
    output(
        program, "run", network, folder / "images", dtype, batch, height, width, folder / "results",
        HIFUSE_EMULATED_MULTIPROCESSORS=str(multiprocessors),
    )  # fmt: skip
    return torch.from_numpy(np.fromfile(folder / "results", np.float32)).view(batch, -1)


NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    # Blocks in several kernels in 16 bits too, as channels and windows are too many; deep sums in parts.
    "several kernels": {"dims": (8, 8, 8, 200), "num_heads": (1, 1, 1, 5), "window_size": 8},
    **{name: VARIANTS[name] for name in ("double sigmoid", "depthwise", "no qkv bias", "no classifier")},
}
CASES = [
    *[("plain", torch.bfloat16), ("plain", torch.float32), ("plain", torch.float16)],
    *[("several kernels", torch.bfloat16), ("double sigmoid", torch.float16)],
    *[("depthwise", torch.bfloat16), ("no qkv bias", torch.float16), ("no classifier", torch.float32)],
]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [CASES[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[1:])],
    ids=str,
)
def test_it_gives_the_bits_of_python(name: str, dtype: torch.dtype, program: Path, tmp_path: Path) -> None:
    """Of batches and sizes, padded ones too, that were not there when the file was written.

    The program lends the memory, and sees that a second run takes none, also while its stream is being captured.
    """
    first = (name, dtype) == CASES[0]
    options = {**SMALL, **NETWORKS[name]}
    network = small_network(dtype) if first else optimize_for_inference(narrow(**options).float(), dtype, backend="cuda")
    network.save(tmp_path / "x.safetensors")
    calls = [images(2, 2, 20, 32)] if first else [images(3, 2, 9, 33).to(dtype)]
    for x in calls:
        expected = network(x)
        assert isinstance(expected, Tensor)
        # On a device of many multiprocessors, parts of sums have blocks of their own, which count each other.
        multiprocessors = 1000 if name == "several kernels" and len(x) == 1 else 1
        results = run(program, tmp_path, tmp_path / "x.safetensors", x, multiprocessors)
        assert torch.equal(results, expected.float())


def on_host(program: Path, folder: Path, network: Path, x: Tensor) -> tuple[Tensor, list[str]]:
    """The results, and what the program says of its launches."""
    x.numpy().tofile(folder / "images")
    batch, _, height, width = x.shape
    said = output(program, "host", network, folder / "images", batch, height, width, folder / "results")
    return torch.from_numpy(np.fromfile(folder / "results", np.float32)).view(batch, -1), said


def few_calls(dtype: torch.dtype) -> tuple[dict[str, PreparedOp], Callable[[Tensor], Tensor]]:
    """A stem, a mixer, an MLP and the mean, of 64 channels: not HiFuse, but all that its kernels for sm_90a compute."""
    stem = {"weight": uniform("stem", 2, 64, 2, 4, 4), **{name: uniform(name, 2, 64) for name in ("bias", "scale", "shift")}}
    weights = {"expand": matrix("expand", 128, 64), "project": matrix("project", 64, 128)}
    biases = {"expand_bias": uniform("expand_bias", 128), "project_bias": uniform("project_bias", 64)}
    made = {
        "stem": Stem.prepare(stem, dtype, eps=(1e-6, 1e-5)),
        "mixer": Mixer.prepare({"weight": uniform("mixer", 64, 64, 3, 3, scale=0.07)}, dtype),
        "mlp": Mlp.prepare({**weights, **biases}, dtype),
    }

    def call(images: Tensor) -> Tensor:
        shape = (len(images), images.shape[2] // 4, images.shape[3] // 4, 64)
        first: Any = tuple(images.new_empty(shape, dtype=dtype) for _ in range(2))
        local_map, global_map = made["stem"](images, out=first)
        return ends.mean(made["mlp"](made["mixer"](local_map), residual=global_map))

    return made, call


def write_calls(path: Path, made: Mapping[str, PreparedOp], call_all: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Any:
    """A file of these calls alone, and the list of them."""
    tensors = {f"{name}.{key}": tensor for name, op in made.items() for key, tensor in op.packed().items()}

    def tape(images: Tensor) -> Tape:
        with recorded(made=False) as found:
            call_all(images)
        return found

    calls = list_calls(tape, tensors)
    configuration = {"in_chans": 2, "num_classes": 0, "dtype": str(dtype).removeprefix("torch.")}
    metadata = {"format": FORMAT, "version": VERSION, BACKEND: "cuda", "configuration": json.dumps(configuration)}
    write_safetensors(tensors, path, {**metadata, CALLS: json.dumps(calls)})
    return calls


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
def test_kernels_for_sm90_are_taken_where_python_took_them(dtype: torch.dtype, program: Path, tmp_path: Path) -> None:
    """From as many rows on as the table said when the file was written."""
    made, call_all = few_calls(dtype)
    path = tmp_path / "x.safetensors"
    with sm90.taken(rows=100):
        calls = write_calls(path, made, call_all, dtype)
    assert [each["op"] for each in calls] == ["stem", "mixer_sm90", "mlp_sm90", "mean"]
    for batch, launches in ((1, 4 + 1 + 2 + 1 + 1), (2, 4 + 1 + 1 + 1 + 1)):  # stem, mixer, MLP, mean, the results' widening
        x = images(batch, 2, 32, 32)  # of 64 pixels
        with sm90.taken(rows=100):
            expected = call_all(x).flatten(1).float()
        results, said = on_host(program, tmp_path, path, x)
        assert torch.equal(results, expected)
        assert said[0] == str(launches)

    # Refused by name, though images of these sizes would not take it.
    for capability, reason in (("80", "8.0"), ("100", "10.0")):
        (message,) = output(program, "open", 0, path, HIFUSE_EMULATED_CAPABILITY=capability)
        assert "call 1 of its list, mixer_sm90: sm90: its kernels run on devices of compute capability 9.0 alone" in message
        assert message.endswith(f"this one has {reason}")
    header, data = parts(path)
    for which, changes, reason in (
        (1, {"sm90_rows": 0}, "mixer_sm90: sm90_rows must be an integer from 1 to 2147483647, got 0"),
        (1, {"depthwise": True}, "mixer_sm90: weight must be 576 elements of"),
        (2, {"op": "mlp"}, "mlp: it has 9 arguments, and this library knows 8 of them"),
    ):
        changed = changed_calls(header, lambda c, which=which, changes=changes: c[which].update(changes))
        (message,) = output(program, "open", 0, write(tmp_path / "changed", changed, data))
        assert f"call {which} of its list, {reason}" in message


@pytest.mark.slow
def test_a_network_takes_kernels_for_sm90(program: Path, tmp_path: Path) -> None:
    """In stage 3 always, in stage 4 for three images."""
    options: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 8, 32, 64), "num_heads": (1, 1, 1, 2)}
    network = optimize_for_inference(narrow(**options).float(), torch.bfloat16, backend="cuda")
    with sm90.taken(rows=3):
        network.save(tmp_path / "x.safetensors")
        calls = json.loads(parts(tmp_path / "x.safetensors")[0]["__metadata__"]["calls"])
        listed = [each["op"] for each in calls if each["op"].startswith(("mlp", "mixer"))]
        assert listed == ["mixer", "mlp", "mixer", "mlp", "mixer", "mlp_sm90", "mixer_sm90", "mlp_sm90"]
        for batch in (1, 3):
            x = images(batch, 2, 32, 32)
            expected = network(x)
            assert isinstance(expected, Tensor)
            assert torch.equal(on_host(program, tmp_path, tmp_path / "x.safetensors", x)[0], expected.float())


def test_launches_begin_early_where_the_table_said_so(program: Path, saved_cuda: Path, tmp_path: Path) -> None:
    """Those of a network, whose file says it. Of an op alone nobody says it."""
    with tables.override(DEPENDENT_LAUNCHES, {"on": 1}):
        small_network(torch.bfloat16).save(tmp_path / "on.safetensors")
    metadata = [parts(path)[0]["__metadata__"] for path in (saved_cuda, tmp_path / "on.safetensors")]
    assert [each[DEPENDENT_LAUNCHES] for each in metadata] == ["false", "true"]
    write_calls(tmp_path / "few.safetensors", *few_calls(torch.float32), torch.float32)
    header, tensors = parts(tmp_path / "few.safetensors")
    for text, early in ((None, "0"), ("false", "0"), ("true", "1")):
        path = write(tmp_path / f"{text}", changed_metadata(header, dependent_launches=text), tensors)
        _, said = on_host(program, tmp_path, path, images(1, 2, 4, 4))
        assert said[1:] == [early, "0"]
    wrong = write(tmp_path / "wrong", changed_metadata(header, dependent_launches="1"), tensors)
    assert "dependent_launches must be true or false, got a number" in output(program, "open", 0, wrong)[0]


@pytest.mark.slow
def test_several_threads_run_one_network(program: Path, saved_cuda: Path) -> None:
    output(program, "threads", saved_cuda)


def test_the_file_is_read_by_python_as_well(saved_cuda: Path) -> None:
    """Tensors of blocks in one launch are in the file for C alone; Python makes them again."""
    header, _ = parts(saved_cuda)
    metadata = header["__metadata__"]
    calls = json.loads(metadata["calls"])
    assert metadata["backend"] == "cuda"
    (block, *_) = (each for each in calls if each["op"] == "global_block")
    assert block["qkv"] == "derived.stages.0.global_blocks.0.whole.qkv"
    assert {each["op"] for each in calls} >= {"stem", "local_block", "fuse_path", "mean", "mlp"}
    named = {text for each in calls for key, text in each.items() if isinstance(text, str) and key not in ("op", "images")}
    assert named <= set(header)
    assert not [name for name in load_optimized(saved_cuda)._made if name.startswith("derived")]


@pytest.mark.parametrize(("channels", "multiprocessors"), [(40, 1), (264, 1000)])
def test_ops_alone(channels: int, multiprocessors: int, program: Path, tmp_path: Path) -> None:
    """A linear, an MLP and the mean, of which one weight serves all. Sums of 264 numbers are cut into two parts."""
    weight = (golden_uniform("weight", (channels, channels)) - 0.5).float()
    x = images(2, 3, 5, channels)
    weight.numpy().tofile(tmp_path / "weight")
    x.numpy().tofile(tmp_path / "x")
    output(
        program, "ops", tmp_path / "weight", tmp_path / "x", tmp_path / "out", *x.shape,
        HIFUSE_EMULATED_MULTIPROCESSORS=str(multiprocessors),
    )  # fmt: skip
    bias = x.flatten()[:channels].contiguous()
    named: dict[str, Any] = {"dtype": torch.float32, "backend": "cuda"}
    linear = ops.prepare_linear(weight, bias, norm="row", eps=1e-6, activation="gelu", **named)
    mlp = ops.prepare_mlp(weight, bias, weight, bias, **named)
    expected = ends.mean(mlp(linear(x, residual=x), residual=x))
    assert torch.equal(torch.from_numpy(np.fromfile(tmp_path / "out", np.float32)).view(expected.shape), expected)


@pytest.mark.slow
def test_the_example_takes_a_device(saved_cuda: Path, tmp_path: Path) -> None:
    example = compiled(ROOT / "examples" / "c" / "predict.c", tmp_path / "predict")
    x = images(1, 2, 32, 32)
    x.numpy().tofile(tmp_path / "x.f32")
    (told,) = csv.DictReader(output(example, "--device", "cuda:0", saved_cuda, tmp_path / "x.f32", 32, 32))
    logits = small_network(torch.bfloat16)(x)
    assert isinstance(logits, Tensor)
    assert told["class"] == str(logits.argmax().item())
    expected = logits.float().softmax(1).flatten().tolist()
    assert [float(told[f"p({i})"]) for i in range(5)] == pytest.approx(expected, abs=1e-6)


def test_the_example_says_what_is_wrong_with_a_device(saved_cuda: Path, tmp_path: Path) -> None:
    example = compiled(ROOT / "examples" / "c" / "predict.c", tmp_path / "predict")
    for arguments, reason in (
        (("--device", "cuda:1"), "device must be one of this machine, which has 1 CUDA devices, got 1"),
        (("--device", "cuda:x"), "--device must be cpu, cuda or cuda:NUMBER"),
        ((), 'frozen for "cuda": open it by hifuse_network_open_cuda'),
    ):
        done = call(example, *arguments, saved_cuda, "x.f32", 32, 32)
        assert done.returncode == 1
        assert reason in done.stderr


# ---- What is refused -----------------------------------------------------------------------------------------------------


def test_wrong_calls_name_the_argument(program: Path, saved_cuda: Path) -> None:
    said = iter(output(program, "misuse", saved_cuda))
    for expected in (
        *("path must not be NULL", "network must not be NULL"),
        "device must be one of this machine, which has 1 CUDA devices, got 7",
        "memory->take and memory->give must not be NULL",
        f"network {saved_cuda}: memory->take must give memory from a multiple of 256 bytes on",
        f'network {saved_cuda}: it was frozen for "cuda": open it by hifuse_network_open_cuda',
        *("network must not be NULL", "images must not be NULL", "results must not be NULL"),
        "images.dtype must be HIFUSE_FLOAT32 or that of the network, got 9",
        *("images is too large", "there is not enough memory on the device, for ", "nothing"),
        *("images.strides must not be negative on a CUDA device, got -1", "images is too large"),
        *("params must not be NULL", "launch must not be NULL", "bytes must not be NULL"),
        "dtype must be HIFUSE_FLOAT32, HIFUSE_BFLOAT16 or HIFUSE_FLOAT16, got 9",
        "x must begin at a multiple of 16 bytes",
        "height and width must be even with pool and with rows of HIFUSE_PATCHES, got 3 x 1",
        *("rows must be from 0 to 1, got 2", "the maps are more than 32767 pixels high or wide"),
        *("nothing", "launch->scratch_bytes must be at least 268, got 0", "launch->scratch must not be NULL"),
        "launch->scratch must begin at a multiple of 256 bytes",
        "dtype must be HIFUSE_BFLOAT16 or HIFUSE_FLOAT16 with sm90, got 0",
        *("the depth must be a multiple of 8 from 8 to 576", "sm90 is for a dense mixer"),
        *("the channels must be 288 or a multiple of 64", "the maps is too large"),
        "dtype must be HIFUSE_BFLOAT16 or HIFUSE_FLOAT16 for a block in one kernel, got 0",
        "channels must be a multiple of 8 up to 192 with whole, got 12",
        *("head_dim must be a multiple of 8, got 12", "window_size must be from 1 to 7, got 8"),
        "dtype must be HIFUSE_BFLOAT16 or HIFUSE_FLOAT16 for a block in one kernel, got 0",
        *("channels must be a multiple of 8 up to 96, got 104", "global_map must not be NULL"),
    ):
        message = next(said)
        assert message.startswith(expected), (message, expected)
    assert not list(said)


def test_files_that_do_not_fit_are_named(program: Path, saved_cuda: Path, tmp_path: Path) -> None:
    header, tensors = parts(saved_cuda)
    configuration = json.loads(header["__metadata__"]["configuration"])
    calls = json.loads(header["__metadata__"]["calls"])
    at = {op: next(i for i, each in enumerate(calls) if each["op"] == op) for op in {each["op"] for each in calls}}

    def with_call(which: str, **changes: Any) -> Any:
        return changed_calls(header, lambda c: c[at[which]].update(changes))

    cases = [
        (header, "opens"),
        (changed_metadata(header, backend="native"), 'it was frozen for "native": open it by hifuse_network_open'),
        (changed_metadata(header, configuration=json.dumps({**configuration, "dtype": "float32"})), "elements of F32"),
        (changed_metadata(header, configuration=json.dumps({**configuration, "dtype": "float64"})), "got float64"),
        (with_call("stem", op="steam"), "this library has no such op on a CUDA device"),
        (with_call("stem", weight="stem.scale"), "weight must be 512 elements of BF16, and stem.scale has 16 of F32"),
        (with_call("local_block", whole=False), "filter_bias must be 8 elements of BF16"),
        (with_call("local_block", eps=-1), "eps must be finite and at least 0, got -1"),
        (with_call("global_block", num_heads=3), "num_heads must divide the channels, got 3"),
        (with_call("global_block", head_dim=4), "head_dim must be 8"),
        (with_call("global_block", num_heads=2), "head_dim must be 4"),
        (with_call("global_block", window_size=16), "window_size must be from 1 to 7, got 16"),
        (with_call("global_block", table="stem.scale"), "table must be 3584 elements of F32"),
        (with_call("fuse_path", weights="stem.weight"), "weights must be 36864 elements of BF16"),
        (with_call("fuse_path", biases="stem.scale"), "biases must be 288 elements of F32"),
        (with_call("fuse_path", global_map="images"), "global_map must be"),
        (with_call("linear", rows=2), "rows must be an integer from 0 to 1, got 2"),
        (with_call("linear", pool=1), "pool must be true or false"),
        (with_call("mixer", out=calls[at["mixer"]]["z"]), f"slot {calls[at['mixer']]['z'][0]} is written and used"),
        (with_call("mixer", depthwise=True), "weight must be 216 elements of BF16"),
        (with_call("mlp", expand_bias="stem.bias"), "expand must be 384 elements of BF16"),
        (with_call("gated_concat", squeeze="stem.weight"), "squeeze must be"),
        (with_call("mean", dtype=0), "it has 4 arguments, and this library knows 3 of them"),
    ]
    paths = [write(tmp_path / str(i), changed, tensors) for i, (changed, _) in enumerate(cases)]
    said = output(program, "open", 0, *paths)
    for (_, expected), message in zip(cases, said, strict=True):
        assert expected in message


def test_no_file_is_a_crash(program: Path, saved_cuda: Path, tmp_path: Path) -> None:
    paths = list(mutants(saved_cuda, tmp_path, 100, seed=1))
    said = output(program, "open", 0, *paths)
    assert len(said) >= len(paths)
    assert 0 < said.count("opens") < len(said) / 2


@pytest.mark.slow
def test_none_of_many_files_is_a_crash(program: Path, saved_cuda: Path, tmp_path: Path) -> None:
    opened = 0
    for seed in range(20):
        opened += output(program, "open", 0, *mutants(saved_cuda, tmp_path, 100, seed + 2)).count("opens")
    assert 0 < opened < 1000


@pytest.mark.slow
def test_no_run_of_a_changed_file_is_a_crash(program: Path, saved_cuda: Path, tmp_path: Path) -> None:
    paths = list(mutants(saved_cuda, tmp_path, 60, seed=0))
    assert len(output(program, "open", 1, *paths)) >= len(paths)
