"""An image has the same bits alone, in any batch, at any place of it, on any number of threads: the order of every sum is
decided by the shapes of the image and of the weights.

Maps of few rows count most, because there a batch changes the tiles that rows are multiplied in. PyTorch's own ops promise
nothing of the kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hifuse_fast import ops
from hifuse_fast.backends.native.library import lib
from hifuse_fast.ops.prepared.mixer import native as mixer
from hifuse_fast.testing import golden_uniform
from tests.support.bits import check_bits, threads
from tests.support.prepared import DTYPES

pytestmark = pytest.mark.skipif(lib is None, reason="the compiled library is not built")
ISAS = [pytest.param(isa, marks=[pytest.mark.slow] * (isa != lib.isa())) for isa in lib.usable_isas()] if lib else []

ROWS = [(1, 1), (1, 2), (1, 3), (2, 2), (1, 5), (2, 3), (1, 7), (2, 4), (3, 3), (2, 5), (1, 11), (3, 4), (1, 13), (2, 7)]
ROWS += [(3, 5), (4, 4)]
TILES = [(2, 8), (8, 2), (3, 8), (5, 6), (6, 8), (8, 7), (7, 7), (8, 8), (15, 3)]  # Winograd's: some or all at an edge
LARGER = [(7, 7), (13, 13)]  # of one block of rows, and of several


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """An instruction set that runs here, in use for the test."""
    assert lib is not None
    before = lib.isa()
    lib.select_isa(request.param)
    yield request.param
    lib.select_isa(before)


def weight(*shape: int) -> Tensor:
    return ((3 / math.prod(shape[1:])) ** 0.5 * (2 * golden_uniform("weight", shape) - 1)).float()


def vector(*shape: int) -> Tensor:
    return golden_uniform("vector", shape).float()


def batch_of(*shape: int) -> Tensor:
    return (2 * golden_uniform("batch", (5, *shape)) - 1).float()


@dataclass(frozen=True)
class Case:
    """`prepare(dtype=)` gives an op of maps of `channels`; one side of a map is `scale` times that of the result."""

    prepare: Callable[..., Any]
    channels: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...] = (*ROWS, LARGER[0])
    scale: int = 1
    first: bool = False  # images: channels first

    def maps(self, height: int, width: int, dtype: torch.dtype) -> list[Tensor]:
        size = height * self.scale, width * self.scale
        return [batch_of(*((c, *size) if self.first else (*size, c))).to(dtype) for c in self.channels]


def linear(depth: int, columns: int, **options: Any) -> Callable[..., Any]:
    return partial(ops.prepare_linear, weight(columns, depth), vector(columns), **options)


def mlp(depth: int, hidden: int, columns: int, algorithm: str) -> Callable[..., Any]:
    tensors = weight(hidden, depth), vector(hidden), weight(columns, hidden), vector(columns)
    return partial(ops.prepare_mlp, *tensors, algorithm=algorithm)


def mixer_of(channels: int, algorithm: str) -> Case:
    return Case(partial(ops.prepare_mixer, weight(channels, channels, 3, 3), algorithm=algorithm), (channels,), (*ROWS, *TILES))


def local_block(c: int, **options: Any) -> Case:
    return Case(partial(ops.prepare_local_block, weight(c, 3, 3), vector(c), weight(c, c), vector(c), **options), (c,))


def gated_concat(c: int) -> Case:
    tensors = weight(2, 7, 7), vector(1), weight(3, c), weight(c, 3), vector(3 * c), vector(3 * c)
    return Case(partial(ops.prepare_gated_concat, *tensors), (c, c, c), (*ROWS, *TILES))


def stem(c: int) -> Case:
    tensors = weight(2, c, 3, 4, 4), vector(2, c), vector(2, c), vector(2, c)
    return Case(partial(ops.prepare_stem, *tensors, eps=(1e-6, 1e-5)), (3,), scale=4, first=True)


def attention(heads: int, head_dim: int, **options: Any) -> Case:
    table = vector((2 * options["window_size"] - 1) ** 2, heads)
    make = partial(ops.prepare_window_attention, table, num_heads=heads, head_dim=head_dim, **options)
    return Case(make, (3 * heads * head_dim,))


MIXERS = [(5, "direct"), (72, "direct"), (72, "winograd2"), (5, "winograd4"), (200, "winograd4")]
CASES = {
    **{f"linear {depth}": Case(linear(depth, 40), (depth,)) for depth in (7, 64, 200, 416)},
    "linear 1000": Case(linear(1000, 9, norm="row"), (1000,)),
    "linear, norm": Case(linear(100, 33, norm="row", activation="gelu"), (100,)),
    "linear of three maps": Case(linear(3 * 70, 33, norm="row"), (70, 70, 70)),
    "linear, pooled": Case(linear(70, 33, activation="relu", pool=True), (70,), scale=2),
    "linear of patches": Case(linear(4 * 24, 40, rows="patches", norm="pixel"), (24,), scale=2),
    "linear of patches, norm": Case(linear(4 * 57, 40, rows="patches", norm="row"), (57,), scale=2),
    "linear, Strassen": Case(linear(800, 64, norm="row"), (800,)),
    "linear, Strassen, pooled": Case(linear(416, 64, activation="gelu", pool=True), (416,), scale=2),
    **{f"local block {c}": local_block(c) for c in (9, 200)},
    "local block, int8": local_block(200, input_scale=0.03),
    **{
        f"mlp {depth}, {hidden}, {algorithm}": Case(mlp(depth, hidden, columns, algorithm), (depth,), (*ROWS, *LARGER))
        for depth, hidden, columns, algorithm in (
            (9, 250, 33, "direct"), (64, 384, 24, "direct"), (96, 1000, 20, "direct"), (32, 1000, 33, "auto"),
            (32, 3072, 9, "auto"),
        )
    },
    **{f"mixer {c}, {how}": mixer_of(c, how) for c, how in MIXERS},
    "mixer, int8": Case(partial(ops.prepare_mixer, weight(72, 72, 3, 3), input_scale=0.03), (72,), (*ROWS, *TILES)),
    "mixer, depthwise": Case(partial(ops.prepare_mixer, weight(21, 1, 3, 3)), (21,), (*ROWS, *TILES)),
    **{f"gated concat {c}": gated_concat(c) for c in (7, 70)},
    **{f"stem {c}": stem(c) for c in (9, 32)},
    "attention": attention(3, 9, window_size=2),
    "attention, shifted": attention(2, 32, window_size=7, shift_size=3),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_prepared_ops(case: Case, dtype: torch.dtype, isa: str) -> None:
    op = case.prepare(dtype=dtype, backend="native")
    fewer = 1 if dtype == torch.float32 else 3  # other sums are not cut by the depth
    for height, width in (*case.sizes[::fewer], case.sizes[-1]):
        check_bits(op, *case.maps(height, width, dtype), what=f"{height} x {width}")


@pytest.mark.parametrize("channels", [40, 136])
def test_filters_transformed_at_the_call(channels: int, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixer, "WIDE", 1)
    case = mixer_of(channels, "winograd4")
    op = case.prepare(dtype=torch.float32, backend="native")
    assert op.options["algorithm"] == "winograd4_at_call"
    for height, width in case.sizes:
        check_bits(op, *case.maps(height, width, torch.float32), what=f"{height} x {width}")


ATTENTION_DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", ATTENTION_DTYPES, ids=str)
@pytest.mark.parametrize(("window", "shift", "head_dim"), [(2, 0, 9), (3, 1, 16), (7, 3, 24)])
def test_window_attention(dtype: torch.dtype, window: int, shift: int, head_dim: int, isa: str) -> None:
    """The map, and its gradient, which is of each image alone. Those of the parameters do not depend on the threads."""
    heads = 2
    table = vector((2 * window - 1) ** 2, heads).to(dtype if dtype == torch.float64 else torch.float32)
    bias = vector(3 * heads * head_dim).to(table)
    options = {"num_heads": heads, "window_size": window, "shift_size": shift, "backend": "native"}

    def run(qkv: Tensor) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in (qkv, table, bias)]
        out = ops.window_attention(leaves[0], leaves[1], qkv_bias=leaves[2], **options)
        grads = torch.autograd.grad(out, leaves, torch.sin(100 * qkv[..., : out.shape[3]]).to(out.dtype))
        return out.detach(), *grads

    for height, width in (*ROWS[::3], *LARGER):
        qkv = batch_of(height, width, 3 * heads * head_dim).to(dtype)
        check_bits(lambda qkv: run(qkv)[:2], qkv, what=f"{height} x {width}")
        found = []
        for count in (1, 2, 3, 4):
            with threads(count):
                found.append(run(qkv)[2:])
        assert all(torch.equal(a, b) for other in found for a, b in zip(found[0], other, strict=True))
