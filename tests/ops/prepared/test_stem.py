"""The prepared stem: the reference against its definition, and every kernel against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hifuse_fast import BackendError
from hifuse_fast.ops import prepare_stem
from hifuse_fast.ops.prepared.base import PreparedOp
from tests.support.kernels import kernels, uniform
from tests.support.prepared import DTYPES, check_determinism, check_parity, matrix, place

pytestmark = pytest.mark.gpu
KERNELS = kernels("prepare_stem", "native", "triton", "cuda")
EPS = (1e-6, 1e-5)
# B, in_chans, H, W of the maps, C
SHAPES = [(2, 3, 8, 7, 96), (1, 1, 3, 5, 13), (3, 5, 1, 1, 40), (1, 4, 17, 9, 8), (1, 3, 1, 2, 1)]


def weights(in_chans: int, channels: int) -> dict[str, Tensor]:
    return {
        "weight": torch.stack([matrix(f"weight{i}", channels, in_chans, 4, 4) for i in (0, 1)]),
        "bias": uniform("bias", 2, channels),
        "scale": 1 + uniform("scale", 2, channels, scale=0.5),
        "shift": uniform("shift", 2, channels),
    }


def images(batch: int, in_chans: int, height: int, width: int) -> Tensor:
    return uniform("images", batch, in_chans, 4 * height, 4 * width)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference_is_the_definition(shape: tuple[int, ...]) -> None:
    *size, channels = shape
    w, x = weights(size[1], channels), images(*size)
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4)  # [B, in_chans, H, W, 4, 4]
    expected = []
    for i in (0, 1):
        y = torch.einsum("bihwrc,oirc->bhwo", patches, w["weight"][i]) + w["bias"][i]
        mean = y.mean(-1, keepdim=True)
        y = (y - mean) / ((y - mean).square().mean(-1, keepdim=True) + EPS[i]).sqrt()
        expected.append(y * w["scale"][i] + w["shift"][i])
    actual = prepare_stem(**w, eps=EPS, dtype=torch.float64, backend="reference")(x)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_parity(shape: tuple[int, ...], dtype: torch.dtype, kernel: str) -> None:
    *size, channels = shape
    check_parity(prepare_stem, weights(size[1], channels), [images(*size)], dtype, kernel, options={"eps": EPS})


def prepared(kernel: str, channels: int = 8, dtype: torch.dtype = torch.float32) -> PreparedOp:
    return prepare_stem(**place(kernel, weights(3, channels), dtype), eps=EPS, dtype=dtype, backend=kernel)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_images_of_any_strides(dtype: torch.dtype, kernel: str) -> None:
    op = prepared(kernel, 20, dtype)
    x = place(kernel, images(2, 3, 4, 5), dtype)
    expected = op(x)
    crop = x.new_zeros(2, 3, 20, 30)
    crop[:, :, 2:18, 5:25] = x
    strided = [
        x.contiguous(memory_format=torch.channels_last),
        crop[:, :, 2:18, 5:25],
        x.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([x, x], -1)[..., 1],
        x[:, :1].expand(2, 3, 16, 20),
    ]
    for view in strided[:-1]:
        assert all(torch.equal(a, e) for a, e in zip(op(view), expected, strict=True))
    grey = strided[-1]
    assert all(torch.equal(a, e) for a, e in zip(op(grey), op(grey.contiguous()), strict=True))


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_batch_0(backend: str) -> None:
    assert [list(x.shape) for x in prepared(backend)(place(backend, torch.empty(0, 3, 8, 12)))] == [[0, 2, 3, 8]] * 2


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_same_bits_whatever_the_threads(kernel: str) -> None:
    op, x = prepared(kernel, 24), place(kernel, images(2, 3, 19, 23), torch.float32)
    for i in (0, 1):
        check_determinism(lambda image, i=i: op(image)[i], x)  # type: ignore[misc, arg-type]


BAD = [
    ({"weight": torch.randn(8, 3, 4, 4)}, ValueError, r"weight must be \[2, C, I, 4, 4\], got \[8, 3, 4, 4\]"),
    ({"weight": torch.randn(2, 8, 3, 4, 3)}, ValueError, r"weight must be \[2, C, I, 4, 4\] = \[2, 8, 3, 4, 4\]"),
    ({"bias": torch.randn(8)}, ValueError, r"bias must be \[2, C\] = \[2, 8\], got \[8\]"),
    ({"scale": torch.randn(2, 7)}, ValueError, r"scale must be \[2, C\] = \[2, 8\], got \[2, 7\]"),
    ({"shift": None}, TypeError, "shift must be a torch.Tensor, got NoneType"),
    ({"eps": 1e-6}, ValueError, "eps must be a pair of numbers, got 1e-06"),
    ({"eps": (1e-6, -1.0)}, ValueError, r"eps\[1\] must be a positive number, got -1.0"),
    ({"dtype": torch.int8}, TypeError, "dtype must be one of"),
    ({"backend": "native", "dtype": torch.float64}, BackendError, "'native' cannot serve prepare_stem"),
    ({"backend": "native", "dtype": torch.float16}, BackendError, "'native' cannot serve prepare_stem"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[f"{row[0]!s:.30}" for row in BAD])
def test_bad_preparation_is_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = place(arguments.get("backend", "native"), weights(3, 8), torch.float32)
    good = {**given, "eps": EPS, "dtype": torch.float32}
    with pytest.raises(error, match=message):
        prepare_stem(**{**good, **arguments})


BAD_CALLS = [
    ([[1.0]], "images must be a torch.Tensor, got list"),
    ([torch.randn(3, 8, 8)], r"images must be \[B, 3, 4H, 4W\] with H and W at least 1, got \[3, 8, 8\]"),
    ([torch.randn(1, 4, 8, 8)], r"images must be \[B, 3, 4H, 4W\]"),
    ([torch.randn(1, 3, 8, 9)], r"images must be \[B, 3, 4H, 4W\]"),
    ([torch.randn(1, 3, 0, 8)], r"images must be \[B, 3, 4H, 4W\]"),
    ([torch.randn(1, 3, 8, 8).bfloat16()], "images must be torch.float32 as the op was prepared for, got torch.bfloat16"),
    ([torch.randn(1, 3, 8, 8, device="meta")], "images must be on the op's device, (cpu|cuda:0), got meta"),
    ([torch.randn(1, 3, 8, 8), torch.empty(2, 2)], "out must be a pair of maps, got Tensor"),
    ([torch.randn(1, 3, 8, 8), (torch.empty(1, 2, 2, 8), torch.empty(1, 2, 2, 7))], r"out\[1\] must be \[1, 2, 2, 8\]"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS, ids=[row[1][:40] for row in BAD_CALLS])
@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_bad_calls_are_refused(arguments: list[Any], message: str, backend: str) -> None:
    op = prepared(backend)
    with pytest.raises((TypeError, ValueError), match=message):
        op(*place(backend, arguments))
