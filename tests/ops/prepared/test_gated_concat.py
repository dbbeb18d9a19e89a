"""The prepared gated concatenation: the reference against its definition, and every kernel against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hifuse_fast import BackendError
from hifuse_fast.ops import prepare_gated_concat
from tests.support.kernels import kernels, uniform
from tests.support.prepared import DTYPES, check_determinism, check_parity, matrix, place

pytestmark = pytest.mark.gpu
KERNELS = kernels("prepare_gated_concat", "native", "triton", "cuda")
# B, H, W, C, squeezed
SHAPES = [(2, 7, 7, 96, 6), (1, 5, 3, 13, 1), (2, 1, 1, 40, 2), (1, 3, 19, 33, 5), (1, 14, 9, 8, 3), (1, 2, 2, 1, 1)]
GATES = [False, True]


def weights(channels: int, squeezed: int) -> dict[str, Tensor]:
    return {
        "filters": uniform("filters", 2, 7, 7, scale=0.3),
        "filter_bias": uniform("filter_bias", 1),
        "squeeze": matrix("squeeze", squeezed, channels),
        "expand": matrix("expand", channels, squeezed),
        "scale": 1 + uniform("scale", 3 * channels, scale=0.5),
        "shift": uniform("shift", 3 * channels),
    }


def maps(batch: int, height: int, width: int, channels: int) -> list[Tensor]:
    return [uniform(name, batch, height, width, channels) + i for i, name in enumerate(("local", "global", "x"))]


@pytest.mark.parametrize("double_sigmoid", GATES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference_is_the_definition(shape: tuple[int, ...], double_sigmoid: bool) -> None:
    *size, squeezed = shape
    w, (local_map, global_map, x) = weights(size[3], squeezed), maps(*size)

    def se(a: Tensor) -> Tensor:
        return torch.einsum("cs,bs->bc", w["expand"], torch.einsum("sc,bc->bs", w["squeeze"], a).clamp_min(0))

    flat = global_map.flatten(1, 2)
    gate = 1 / (1 + torch.exp(-se(flat.max(1).values) - se(flat.mean(1))))
    gate = 1 / (1 + torch.exp(-gate)) if double_sigmoid else gate
    batch, height, width, _ = size
    padded = x.new_zeros(2, batch, height + 6, width + 6)
    padded[0, :, 3:-3, 3:-3], padded[1, :, 3:-3, 3:-3] = local_map.max(-1).values, local_map.mean(-1)
    sums = sum(
        w["filters"][i, r, c] * padded[i, :, r : r + height, c : c + width] for i in (0, 1) for r in range(7) for c in range(7)
    )
    space = 1 / (1 + torch.exp(-sums - w["filter_bias"]))
    z = torch.cat([global_map * gate[:, None, None], local_map * space[..., None], x], -1)
    mean = z.mean(-1, keepdim=True)
    expected = (z - mean) / ((z - mean).square().mean(-1, keepdim=True) + 1e-6).sqrt() * w["scale"] + w["shift"]
    op = prepare_gated_concat(**w, double_sigmoid=double_sigmoid, dtype=torch.float64, backend="reference")
    torch.testing.assert_close(op(local_map, global_map, x), expected)


# One sigmoid and two in float32; two in bfloat16, which is slow in the interpreter.
PAIRS = [
    pytest.param(dtype, double, marks=[] if double or dtype == torch.float32 else [pytest.mark.slow])
    for dtype in DTYPES
    for double in GATES
]


@pytest.mark.parametrize(("dtype", "double_sigmoid"), PAIRS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_parity(shape: tuple[int, ...], dtype: torch.dtype, double_sigmoid: bool, kernel: str) -> None:
    *size, squeezed = shape
    options = {"double_sigmoid": double_sigmoid, "eps": 1e-4}
    check_parity(prepare_gated_concat, weights(size[3], squeezed), maps(*size), dtype, kernel, options=options)


def prepared(backend: str, channels: int = 8) -> Any:
    values = place(backend, weights(channels, 2), torch.float32)
    return prepare_gated_concat(**values, dtype=torch.float32, backend=backend)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_batch_0(backend: str) -> None:
    assert prepared(backend)(*place(backend, [torch.empty(0, 3, 5, 8)] * 3)).shape == (0, 3, 5, 24)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_negative_maps(backend: str) -> None:
    """The largest of numbers below zero is not zero."""
    inputs = [x.float() - 9 for x in maps(2, 3, 5, 8)]
    expected = prepared("reference")(*inputs)
    actual = prepared(backend)(*place(backend, inputs))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5, check_device=False)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_same_bits_whatever_the_threads(kernel: str) -> None:
    check_determinism(prepared(kernel, 40), *place(kernel, maps(3, 19, 23, 40), torch.float32))


BAD = [
    ({"filters": torch.randn(1, 2, 7, 7)}, ValueError, r"filters must be \[2, 7, 7\], got \[1, 2, 7, 7\]"),
    ({"filter_bias": torch.randn(2)}, ValueError, r"filter_bias must be \[1\], got \[2\]"),
    ({"squeeze": torch.randn(2, 8, 1, 1)}, ValueError, r"squeeze must be \[S, C\], got \[2, 8, 1, 1\]"),
    ({"expand": torch.randn(2, 8)}, ValueError, r"expand must be \[C, S\] = \[8, 2\], got \[2, 8\]"),
    ({"scale": torch.randn(8)}, ValueError, r"scale must be \[3C\] = \[24\], got \[8\]"),
    ({"shift": None}, TypeError, "shift must be a torch.Tensor, got NoneType"),
    ({"double_sigmoid": "yes"}, TypeError, "double_sigmoid must be True or False, got 'yes'"),
    ({"eps": -1.0}, ValueError, "eps must be a positive number, got -1.0"),
    ({"dtype": torch.int8}, TypeError, "dtype must be one of"),
    ({"backend": "native", "dtype": torch.float64}, BackendError, "'native' cannot serve prepare_gated_concat"),
    ({"backend": "native", "dtype": torch.float16}, BackendError, "'native' cannot serve prepare_gated_concat"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[f"{row[0]!s:.30}" for row in BAD])
def test_bad_preparation_is_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = place(arguments.get("backend", "native"), weights(8, 2), torch.float32)
    good = {**given, "dtype": torch.float32}
    with pytest.raises(error, match=message):
        prepare_gated_concat(**{**good, **arguments})


X = torch.randn(1, 3, 5, 8)
BAD_CALLS = [
    ([None, X, X], "local_map must be a torch.Tensor, got NoneType"),
    ([X[..., :7].contiguous(), X, X], r"local_map must be \[B, H, W, 8\] with H and W at least 1, got \[1, 3, 5, 7\]"),
    ([X, X[:, :2].contiguous(), X], r"global_map must be \[1, 3, 5, 8\]"),
    ([X, X, X.double()], "x must be torch.float32 as the op was prepared for, got torch.float64"),
    ([X, X, X.transpose(1, 2).contiguous().transpose(1, 2)], "x must be contiguous"),
    ([X, X, X, torch.empty(1, 3, 5, 8)], r"out must be \[1, 3, 5, 24\]"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS, ids=[row[1][:40] for row in BAD_CALLS])
@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_bad_calls_are_refused(arguments: list[Any], message: str, backend: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        prepared(backend)(*place(backend, arguments))
