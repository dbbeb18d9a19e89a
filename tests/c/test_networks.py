"""A frozen network in C gives the bits of Python, in a program that has no Python and no torch."""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

from hifuse_fast import OptimizedHiFuse, create_model_from_checkpoint, optimize_for_inference, save_checkpoint
from hifuse_fast.backends.native.library import lib
from hifuse_fast.cli import main
from hifuse_fast.inference.make import Packer
from hifuse_fast.inference.source import read_source
from hifuse_fast.ops.prepared.linear.native import Linear
from hifuse_fast.ops.prepared.local_block.native import LocalBlock
from hifuse_fast.ops.prepared.mixer.native import Mixer
from hifuse_fast.ops.prepared.mlp.native import Mlp
from hifuse_fast.testing import golden_uniform
from tests.support.c_library import HEADS, QUICK, images, needs_library, output
from tests.support.frozen import VARIANTS, make
from tests.support.paths import ROOT

pytestmark = needs_library


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


def test_two_networks_at_once_of_sizes_at_the_edge(saved: Path, programs: Path, tmp_path: Path) -> None:
    other = optimize_for_inference(make(torch.float32, **QUICK), torch.bfloat16, backend="native")
    other.save(tmp_path / "x.safetensors")
    output(programs / "calls", "pair", saved, tmp_path / "x.safetensors")


@pytest.mark.parametrize("algorithm", ["auto", "direct"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_gives_the_bits_of_int8(dtype: torch.dtype, algorithm: str, programs: Path, tmp_path: Path) -> None:
    """Every linear, local block, mixer and MLP in 8 bits, by scales that nobody calibrated."""
    model = make(torch.float32, **QUICK)
    plain = optimize_for_inference(model, dtype, backend="native", algorithm=algorithm)
    scales = {
        name: {"input_scale": 0.03, **({"hidden_scale": 0.02} if isinstance(op, Mlp) else {})}
        for name, op in plain._made.items()
        if isinstance(op, (Linear, LocalBlock, Mixer, Mlp))
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
        assert not re.search(r"torch|libc10|python|gomp|cudart", loaded)
    shown = subprocess.run(["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1] for line in shown.splitlines()}
    header = "".join((ROOT / "include" / "hifuse" / name).read_text() for name in ("hifuse.h", "cuda.h"))
    assert names == {name for name in names if name.startswith("hifuse_") and f" {name}(" in header.replace("*", " ")}
    assert {"hifuse_network_run", "hifuse_linear", "hifuse_pack_filters", "hifuse_cuda_mlp"} <= names


def test_the_header_is_c_and_cpp() -> None:
    header = ROOT / "include" / "hifuse" / "cuda.h"  # which has hifuse.h, and needs nothing of CUDA
    for language in (["cc", "-std=c99", "-x", "c"], ["c++", "-std=c++11", "-x", "c++"]):
        command = [*language, "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", str(header)]
        assert subprocess.run(command, capture_output=True, text=True, check=False).stderr in ("", None)
