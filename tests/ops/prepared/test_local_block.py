"""The prepared local block: the reference against its definition, and every kernel against the reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hifuse_fast import BackendError
from hifuse_fast.backends import tables
from hifuse_fast.ops import prepare_local_block
from hifuse_fast.ops.prepared.base import PreparedOp
from tests.support.emulation import check_runs, launched
from tests.support.kernels import kernels, uniform
from tests.support.prepared import DTYPES, check_determinism, check_parity, matrix, place

pytestmark = pytest.mark.gpu
KERNELS = kernels("prepare_local_block", "native", "triton", "cuda")
SHAPES = [(2, 7, 7, 96), (1, 5, 3, 13), (1, 1, 1, 40), (2, 1, 9, 33), (1, 23, 11, 8), (1, 2, 2, 2)]


def weights(channels: int) -> dict[str, Tensor]:
    return {
        "filters": uniform("filters", channels, 3, 3),
        "filter_bias": uniform("filter_bias", channels),
        "weight": matrix("weight", channels, channels),
        "bias": uniform("bias", channels),
    }


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference_is_the_definition(shape: tuple[int, ...]) -> None:
    w, x = weights(shape[3]), uniform("x", *shape)
    batch, height, width, channels = shape
    padded = x.new_zeros(batch, height + 2, width + 2, channels)
    padded[:, 1:-1, 1:-1] = x
    mixed = w["filter_bias"] + sum(
        w["filters"][:, r, c] * padded[:, r : r + height, c : c + width] for r in range(3) for c in range(3)
    )
    mean = mixed.mean(-1, keepdim=True)
    normed = (mixed - mean) / ((mixed - mean).square().mean(-1, keepdim=True) + 1e-6).sqrt()
    y = torch.einsum("bhwk,nk->bhwn", normed, w["weight"]) + w["bias"]
    expected = x + y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
    torch.testing.assert_close(prepare_local_block(**w, dtype=torch.float64, backend="reference")(x), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_parity(shape: tuple[int, ...], dtype: torch.dtype, kernel: str) -> None:
    check_parity(prepare_local_block, weights(shape[3]), [uniform("x", *shape)], dtype, kernel, options={"eps": 1e-3})


@pytest.mark.parametrize("shape", [(1, 9, 17, 96), (1, 5, 18, 192), (2, 2, 3, 104), (1, 17, 8, 24)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kernel", kernels("prepare_local_block", "cuda"))
def test_whole_blocks_in_one_kernel(shape: tuple[int, ...], dtype: torch.dtype, kernel: str) -> None:
    """Tiles at each edge of a map, of 8 x 8 and of 4 x 16 pixels; channels that fill up a kernel's or do not."""
    check_parity(prepare_local_block, weights(shape[3]), [uniform("x", *shape)], dtype, kernel, options={"eps": 1e-3})


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 9, 17, 96), (1, 5, 18, 192), (2, 2, 3, 104)], ids=str)
@pytest.mark.parametrize("kernel", kernels("prepare_local_block", "cuda"))
def test_all_runs_give_the_same_bits(shape: tuple[int, ...], kernel: str) -> None:
    op = prepare_local_block(**place(kernel, weights(shape[3]), torch.bfloat16), dtype=torch.bfloat16, backend=kernel)
    x = place(kernel, uniform("x", *shape), torch.bfloat16)
    check_runs(lambda: [op(x)])


@pytest.mark.parametrize("kernel", kernels("prepare_local_block", "cuda"))
def test_a_row_of_equal_numbers_has_no_spread(kernel: str) -> None:
    """Its norm is zero, and what is left of a rounded mean is not divided by the root of eps."""
    w = {name: torch.zeros_like(tensor) for name, tensor in weights(24).items()}
    w = w | {"filter_bias": w["filter_bias"] + 1000.3, "weight": weights(24)["weight"]}
    op = prepare_local_block(**place(kernel, w, torch.bfloat16), dtype=torch.bfloat16, backend=kernel)
    x = place(kernel, uniform("x", 1, 3, 3, 24), torch.bfloat16)
    torch.testing.assert_close(op(x), x, rtol=0, atol=0)


def prepared(kernel: str, channels: int = 8) -> PreparedOp:
    return prepare_local_block(**place(kernel, weights(channels), torch.float32), dtype=torch.float32, backend=kernel)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_batch_0(backend: str) -> None:
    assert prepared(backend)(place(backend, torch.empty(0, 3, 5, 8))).shape == (0, 3, 5, 8)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_same_bits_whatever_the_threads(kernel: str) -> None:
    check_determinism(prepared(kernel, 40), place(kernel, uniform("x", 2, 19, 23, 40), torch.float32))


BAD = [
    ({"filters": torch.randn(8, 1, 3, 3)}, ValueError, r"filters must be \[C, 3, 3\], got \[8, 1, 3, 3\]"),
    ({"filter_bias": torch.randn(7)}, ValueError, r"filter_bias must be \[C\] = \[8\], got \[7\]"),
    ({"weight": torch.randn(8, 7)}, ValueError, r"weight must be \[C, C\] = \[8, 8\], got \[8, 7\]"),
    ({"bias": None}, TypeError, "bias must be a torch.Tensor, got NoneType"),
    ({"eps": "0"}, ValueError, "eps must be a positive number, got '0'"),
    ({"dtype": torch.int8}, TypeError, "dtype must be one of"),
    ({"backend": "native", "dtype": torch.float64}, BackendError, "'native' cannot serve prepare_local_block"),
    ({"backend": "native", "dtype": torch.float16}, BackendError, "'native' cannot serve prepare_local_block"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[f"{row[0]!s:.30}" for row in BAD])
def test_bad_preparation_is_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = place(arguments.get("backend", "native"), weights(8), torch.float32)
    good = {**given, "dtype": torch.float32}
    with pytest.raises(error, match=message):
        prepare_local_block(**{**good, **arguments})


X = torch.randn(1, 3, 5, 8)
BAD_CALLS = [
    ([None], "x must be a torch.Tensor, got NoneType"),
    ([X[0]], r"x must be \[B, H, W, 8\] with H and W at least 1, got \[3, 5, 8\]"),
    ([torch.randn(1, 3, 5, 9)], r"x must be \[B, H, W, 8\]"),
    ([X[:, :0]], r"x must be \[B, H, W, 8\]"),
    ([X.bfloat16()], "x must be torch.float32 as the op was prepared for, got torch.bfloat16"),
    ([X[..., ::1].transpose(1, 2)], "x must be contiguous"),
    ([X, X], "out must not share memory with x"),
    ([X, torch.empty(1, 3, 5, 7)], r"out must be \[1, 3, 5, 8\]"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS, ids=[row[1][:40] for row in BAD_CALLS])
@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_bad_calls_are_refused(arguments: list[Any], message: str, backend: str) -> None:
    op = prepared(backend)
    with pytest.raises((TypeError, ValueError), match=message):
        op(*place(backend, arguments))


@pytest.mark.parametrize("kernel", kernels("prepare_local_block", "cuda"))
def test_the_table_says_from_how_many_pixels_on_a_block_is_one_kernel(kernel: str) -> None:
    """What was packed for one serves two as well."""
    shape, one, two = (1, 3, 5, 24), ["local_block"], ["depthwise_norm_forward", "products"]
    x = uniform("x", *shape).bfloat16()
    op = prepare_local_block(**weights(24), dtype=torch.bfloat16, backend=kernel)
    for rows, expected in ((0, two), (1, one), (15, one), (16, two)):
        with tables.override("local_block", {"rows": rows}), launched() as found:
            op(x)
        assert found == expected, rows
    with tables.override("local_block", {"rows": 0}):
        check_parity(prepare_local_block, weights(24), [uniform("x", *shape)], torch.bfloat16, kernel, options={"eps": 1e-3})
