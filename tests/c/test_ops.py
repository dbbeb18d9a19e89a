"""The ops of the library for C alone, and how their weights are packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hifuse_fast import ops
from hifuse_fast.backends.native.algorithms import ALGORITHMS
from hifuse_fast.testing import golden_uniform
from tests.support.c_library import images, needs_library, output

pytestmark = needs_library


@pytest.mark.parametrize("algorithm", ["direct", "winograd2", "winograd4", "winograd4_at_call", "int8", "int8_winograd2"])
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
    if algorithm.startswith("int8"):
        packed = torch.ops.hifuse_fast.pack_mixer_int8((weight * 200).to(torch.int8), number)
        torch.ops.hifuse_fast.mixer_int8_out(between, packed, torch.full((channels,), 2.0**-10), out, 50.0, number)
    else:
        packed = torch.ops.hifuse_fast.pack_mixer(weight, torch.float32, number)
        torch.ops.hifuse_fast.mixer_out(between, packed, out, number)
    assert torch.equal(torch.from_numpy(np.fromfile(tmp_path / "out", np.float32)).view(out.shape), out)
