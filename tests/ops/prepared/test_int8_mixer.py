"""The mixer in int8: against its definition, written a second time; and Winograd's sums in integers against the direct ones."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hifuse_fast.backends.native.algorithms import ALGORITHMS
from hifuse_fast.backends.native.library import lib, multiplies_bfloat16
from hifuse_fast.ops import prepare_mixer
from hifuse_fast.ops.prepared.int8 import MOST_CHANNELS
from hifuse_fast.testing import nan_poisoned_empty
from tests.support import kernels as support
from tests.support import prepared
from tests.support.prepared import check_determinism, check_images_apart

needs_library = pytest.mark.skipif(lib is None, reason="of the compiled library")
NATIVE = [pytest.param({"backend": "native", "algorithm": each}, marks=needs_library) for each in ("direct", "winograd2")]
HOW = [pytest.param({"backend": "reference"}), *NATIVE]


def uniform(name: str, *shape: int) -> Tensor:
    return support.uniform(name, *shape).float()


def matrix(name: str, *shape: int) -> Tensor:
    return prepared.matrix(name, *shape).float()


def exact_filters(channels: int) -> Tensor:
    """Integers, the largest of each output channel 127: what follows the sums is exact."""
    weight = (matrix("weight", channels, channels, 3, 3) * 300).round().clamp(-127, 127)
    weight[:, 0, 1, 1] = 127
    return weight


def convolution_by_hand(z: Tensor, weight: Tensor, scale: float) -> Tensor:
    """Of maps that divided by `scale` are integers, in float64."""
    integers = (z.double() / scale).clamp(-127, 127)
    padded = torch.zeros(len(z), z.shape[1] + 2, z.shape[2] + 2, z.shape[3], dtype=torch.float64)
    padded[:, 1:-1, 1:-1] = integers
    y = torch.zeros(z.shape, dtype=torch.float64)
    for r in range(3):
        for c in range(3):
            at = padded[:, r : r + z.shape[1], c : c + z.shape[2]]
            y += torch.einsum("bhwk,nk->bhwn", at, weight[:, :, r, c].double())
    return y * scale


# Odd sizes; an image in several bands; several images that are multiplied together, an odd one left.
SHAPES = [(2, 7, 7, 96), (1, 5, 3, 13), (1, 1, 1, 1), (2, 1, 9, 33), (1, 90, 131, 64), (5, 5, 6, 700)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("how", HOW, ids=str)
def test_it_is_the_definition(shape: tuple[int, ...], dtype: torch.dtype, how: dict[str, str]) -> None:
    """Sums are exact, so all that errs is GELU, by 2e-5, and the rounding of the result."""
    weight, scale = exact_filters(shape[3]), 2.0**-9
    z = (uniform("z", *shape) * 200).round() * scale
    y = convolution_by_hand(z, weight, scale)
    expected = z.double() + y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
    op = prepare_mixer(weight, input_scale=scale, dtype=dtype, **how)
    assert op.options["input_scale"] == scale
    with nan_poisoned_empty():
        actual = op(z.to(dtype))
    rounding = torch.finfo(dtype).eps * float(expected.abs().max())
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=3e-5 + rounding)


@pytest.mark.parametrize("how", HOW, ids=str)
def test_it_is_another_product_and_a_good_one(how: dict[str, str]) -> None:
    weight, z = matrix("weight", 70, 70, 3, 3), uniform("z", 2, 9, 11, 70)
    actual, full = (prepare_mixer(weight, input_scale=s, dtype=torch.float32, **how)(z) for s in (1 / 127, None))
    assert 1e-5 < float((actual - full).abs().max()) < 0.02 * float(full.abs().max())


@pytest.mark.parametrize("how", HOW, ids=str)
def test_it_passes_on_what_is_not_finite(how: dict[str, str]) -> None:
    op = prepare_mixer(matrix("weight", 40, 40, 3, 3), input_scale=0.01, dtype=torch.float32, **how)
    for spoilt in (math.nan, math.inf, -math.inf):
        z = uniform("z", 2, 3, 5, 40)
        z[1, 2, 3, 39] = spoilt
        lost = op(z).isnan()
        assert lost[1, 1:, 2:].all()  # its neighbours, at a corner of the map
        assert lost.sum() == 6 * 40
        z = uniform("z", 2, 7, 8, 40)
        z[0, 4, 5, 0] = spoilt
        lost = op(z).isnan()
        assert lost[0, 3:6, 4:7].all()  # its neighbours, which lie in four tiles of Winograd's
        assert lost.sum() == 9 * 40


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (3, 2, 2, 33), (1, 57, 56, 32), (40, 7, 7, 40)], ids=str)
def test_winograd_has_the_bits_of_the_direct_algorithm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight, z = matrix("weight", shape[3], shape[3], 3, 3), uniform("z", *shape).to(dtype)
    with nan_poisoned_empty():
        direct, winograd = (
            prepare_mixer(weight, input_scale=0.01, dtype=dtype, backend="native", algorithm=each)(z)
            for each in ("direct", "winograd2")
        )
    assert torch.equal(winograd, direct)


@needs_library
@pytest.mark.parametrize("seed", range(8))
def test_sums_that_pass_the_range_of_int32_on_their_way_are_exact(seed: int) -> None:
    """Of 127 and -127, alike for all channels: the products of a tile are as large as they can be."""
    generator = torch.Generator().manual_seed(seed)
    channels = 1200
    filters, pixels = ((torch.randint(2, size, generator=generator) * 254 - 127).float() for size in ((3, 3), (6, 7)))
    largest = {"p": 4 * 127 * 9 * 127 * channels, "4 y": 4 * 9 * 127**2 * channels}
    assert 4 * largest["p"] > 2**31 > largest["4 y"]
    op = prepare_mixer(
        filters.expand(channels, channels, 3, 3).contiguous(),
        input_scale=1.0,
        dtype=torch.float32,
        backend="native",
        algorithm="winograd2",
    )
    y = torch.nn.functional.conv2d(pixels[None, None].double(), filters[None, None].double(), padding=1)[0, 0] * channels
    out = op(pixels[None, :, :, None].expand(1, 6, 7, channels).contiguous())[0].double() - pixels[:, :, None]
    expected = torch.nn.functional.gelu(y)[:, :, None].expand_as(out)
    torch.testing.assert_close(out, expected, rtol=2e-7, atol=3e-5)  # sums of up to 2^28 are rounded to float32


@pytest.mark.parametrize("how", NATIVE, ids=str)
def test_bits_depend_on_neither_threads_nor_the_batch(how: dict[str, str]) -> None:
    op = prepare_mixer(matrix("filters", 40, 40, 3, 3), input_scale=0.02, dtype=torch.float32, **how)
    check_determinism(op, uniform("u", 2, 19, 23, 40))
    check_images_apart(op, uniform("u", 4, 5, 7, 40))


@pytest.mark.parametrize("how", HOW, ids=str)
def test_batch_0(how: dict[str, str]) -> None:
    op = prepare_mixer(matrix("filters", 8, 8, 3, 3), input_scale=0.1, dtype=torch.float32, **how)
    assert op(torch.empty(0, 2, 2, 8)).shape == (0, 2, 2, 8)


@needs_library
@pytest.mark.parametrize("algorithm", ["direct", "winograd2"])
def test_every_instruction_set_multiplies_the_same(algorithm: str) -> None:
    """Also the packed weight is the same for all of them."""
    assert lib is not None
    before, found = lib.isa(), []
    options: dict[str, Any] = {"input_scale": 0.01, "dtype": torch.float32, "backend": "native", "algorithm": algorithm}
    try:
        for name in lib.usable_isas():
            lib.select_isa(name)
            op = prepare_mixer(exact_filters(100), **options)
            found.append((op.packed()["weight"], op(uniform("z", 2, 5, 7, 100))))
    finally:
        lib.select_isa(before)
    for weight, out in found[1:]:
        assert torch.equal(weight, found[0][0])
        torch.testing.assert_close(out, found[0][1], rtol=0, atol=2e-5)  # GELU is another one


@needs_library
def test_the_algorithm_is_the_one_asked_for_or_the_faster_one() -> None:
    weight = matrix("filters", 8, 8, 3, 3)
    names = {"direct": "int8", "winograd2": "int8_winograd2", "auto": "int8" if multiplies_bfloat16() else "int8_winograd2"}
    for asked, name in names.items():
        op = prepare_mixer(weight, input_scale=0.1, dtype=torch.float32, backend="native", algorithm=asked)
        assert op.options["algorithm"] == name


def test_what_int8_does_not_serve_is_refused() -> None:
    options: dict[str, Any] = {"input_scale": 1.0, "dtype": torch.float32}
    with pytest.raises(ValueError, match=r"weight must be \[C, C, 3, 3\] with input_scale, got \[8, 1, 3, 3\]"):
        prepare_mixer(torch.ones(8, 1, 3, 3), **options)
    with pytest.raises(ValueError, match="algorithm with input_scale must be one of auto, direct, winograd2, got 'winograd4'"):
        prepare_mixer(torch.ones(8, 8, 3, 3), algorithm="winograd4", **options)
    wide = torch.ones(1, 1, 1, 1).expand(MOST_CHANNELS + 1, MOST_CHANNELS + 1, 3, 3)
    with pytest.raises(ValueError, match="winograd2 with input_scale is of 3698 channels or fewer, got 3699"):
        prepare_mixer(wide, algorithm="winograd2", **options)


@needs_library
@pytest.mark.parametrize(("algorithm", "size"), [("int8", 18560), ("int8_winograd2", 32768)])
def test_direct_calls_are_checked(algorithm: str, size: int) -> None:
    number, x, out = ALGORITHMS[algorithm], torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 1, 8)
    pack, call = torch.ops.hifuse_fast.pack_mixer_int8, torch.ops.hifuse_fast.mixer_int8_out
    weight, scale = pack(torch.ones(8, 8, 3, 3, dtype=torch.int8), number), torch.ones(8)
    with pytest.raises(RuntimeError, match=f"weight must be packed for int8: {size} contiguous bytes"):
        call(x, weight[:-1], scale, out, 10.0, number)
    with pytest.raises(RuntimeError, match="scale must be 8 contiguous float32 numbers"):
        call(x, weight, scale[:2], out, 10.0, number)
    with pytest.raises(RuntimeError, match="inverse must be a finite positive float32"):
        call(x, weight, scale, out, 0.0, number)
    with pytest.raises(RuntimeError, match="out must not be z"):
        call(x, weight, scale, x, 10.0, number)
    with pytest.raises(RuntimeError, match="mixer_int8"):
        call(x, weight, scale, out, 10.0, ALGORITHMS["winograd4"])
    for bad in (torch.ones(8, 8, 3, 3), torch.ones(8, 7, 3, 3, dtype=torch.int8), torch.ones(8, 72, dtype=torch.int8)):
        with pytest.raises(RuntimeError, match=r"weight must be int8 \[C, C, 3, 3\] on the CPU"):
            pack(bad, number)
