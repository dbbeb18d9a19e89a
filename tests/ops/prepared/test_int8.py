"""Products in int8: what is rounded and how, written a second time; and the kernels against it, to the last bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hifuse_fast import BackendError
from hifuse_fast.backends.native.library import lib
from hifuse_fast.ops import prepare_linear, prepare_local_block, prepare_mixer, prepare_mlp
from hifuse_fast.testing import nan_poisoned_empty
from tests.support import kernels as support
from tests.support import prepared
from tests.support.kernels import kernels
from tests.support.prepared import check_determinism, check_images_apart

KERNELS = kernels("prepare_linear", "native")
BACKENDS = ["reference", *KERNELS]
# B, H, W, K, N
SHAPES = [(2, 7, 7, 96, 32), (1, 5, 3, 13, 7), (1, 1, 1, 1, 1), (1, 3, 9, 700, 65), (2, 2, 1, 33, 129)]
MLP_SHAPES = [(2, 7, 7, 96, 384, 32), (1, 5, 3, 13, 31, 7), (1, 1, 1, 1, 1, 1), (1, 3, 9, 40, 193, 33)]  # and hidden
SCALE = 2.0**-6


def uniform(name: str, *shape: int) -> Tensor:
    return support.uniform(name, *shape).float()


def matrix(name: str, *shape: int) -> Tensor:
    return prepared.matrix(name, *shape).float()


def round_half_even(x: float) -> int:
    return round(max(-127.0, min(127.0, x)))  # Python's own goes to the even one


def by_hand(row: list[float], weight: list[list[float]], scale: float) -> list[float]:
    quantised = [round_half_even(x / scale) for x in row]
    results = []
    for each in weight:
        largest = max(abs(w) for w in each)
        integers = [round_half_even(w / (largest / 127)) for w in each]
        results.append(sum(a * b for a, b in zip(quantised, integers, strict=True)) * (largest / 127) * scale)
    return results


@pytest.mark.parametrize("shape", [(1, 5, 3, 13, 7), (2, 1, 2, 40, 5), (1, 1, 1, 1, 1)], ids=str)
def test_the_reference_is_the_definition(shape: tuple[int, ...]) -> None:
    *size, depth, columns = shape
    weight, bias, x = matrix("weight", columns, depth), uniform("bias", columns), 2 * uniform("x", *size, depth)
    actual = prepare_linear(weight, bias, input_scale=SCALE, dtype=torch.float32, backend="reference")(x)
    expected = torch.tensor([by_hand(row, weight.tolist(), SCALE) for row in x.flatten(0, 2).tolist()]) + bias
    torch.testing.assert_close(actual.flatten(0, 2), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"rows": "patches"}, {"pool": True, "activation": "relu"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_linear_has_the_bits_of_the_reference(
    shape: tuple[int, ...], dtype: torch.dtype, options: dict[str, Any], kernel: str
) -> None:
    """The scales are powers of 2, and so are the largest weights over 127: what follows the sums is exact as well."""
    batch, height, width, depth, columns = shape
    if options:
        height, width = 2 * height, 2 * width
    factor = 4 if "rows" in options else 1
    weight = (matrix("weight", columns, depth * factor) * 40).round().clamp(-127, 127)
    weight[:, 0] = 127
    x = (2 * uniform("x", batch, height, width, depth)).to(dtype)
    ops = [
        prepare_linear(weight, torch.zeros(columns), input_scale=SCALE, dtype=dtype, backend=each, **options)
        for each in ("reference", kernel)
    ]
    with nan_poisoned_empty():
        actual = ops[1](x)
    torch.testing.assert_close(actual, ops[0](x), rtol=0, atol=0)


@pytest.mark.parametrize("norm", [("pixels", "row"), ("patches", "row"), ("patches", "pixel")], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_norm_gelu_and_residual(norm: tuple[str, str], kernel: str) -> None:
    """A last bit of the norm may move an integer by one, and GELU is within 2e-5."""
    options: dict[str, Any] = {"rows": norm[0], "norm": norm[1], "activation": "gelu", "input_scale": 3 / 127}
    depth, half = (4 * 24, 2) if norm[0] == "patches" else (24, 1)
    weight, bias, x = matrix("weight", 37, depth), uniform("bias", 37), uniform("x", 2, 6, 4, 24)
    residual = uniform("residual", 2, 6 // half, 4 // half, 37)
    expected, actual = (
        prepare_linear(weight, bias, dtype=torch.float32, backend=each, **options)(x, residual=residual)
        for each in ("reference", kernel)
    )
    step = float(weight.abs().max()) * options["input_scale"]
    torch.testing.assert_close(actual, expected, rtol=0, atol=2 * step)
    assert float((actual - expected).abs().mean()) < 3e-5
    full = prepare_linear(weight, bias, dtype=torch.float32, backend="reference", **{**options, "input_scale": None})
    assert 1e-4 < float((expected - full(x, residual=residual)).abs().max()) < 0.1  # it is another product, and a good one


def block_weights(channels: int) -> dict[str, Tensor]:
    return {
        "filters": uniform("filters", channels, 3, 3),
        "filter_bias": uniform("filter_bias", channels),
        "weight": matrix("weight", channels, channels),
        "bias": uniform("bias", channels),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 7, 7, 96), (1, 5, 3, 13), (1, 1, 1, 1), (1, 3, 9, 130)], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_local_block_agrees_with_the_reference(shape: tuple[int, ...], dtype: torch.dtype, kernel: str) -> None:
    """A last bit of the norm may move an integer by one, and GELU is within 2e-5."""
    weights, x, scale = block_weights(shape[3]), uniform("x", *shape).to(dtype), 5 / 127
    with nan_poisoned_empty():
        expected, actual = (
            prepare_local_block(**weights, input_scale=scale, dtype=dtype, backend=each)(x) for each in ("reference", kernel)
        )
    step = float(weights["weight"].abs().max()) * scale
    rounding = 2.0**-7 * float(expected.abs().max()) if dtype == torch.bfloat16 else 3e-5
    torch.testing.assert_close(actual, expected, rtol=0, atol=2 * step + rounding)
    assert float((actual.float() - expected.float()).abs().mean()) < 3e-5 + rounding / 4
    if shape[3] == 1:
        return  # the norm of one channel is zero
    full = prepare_local_block(**weights, dtype=torch.float32, backend="reference")(x.float())
    assert 1e-4 < float((actual.float() - full).abs().max()) < 0.1  # it is another product, and a good one


def mlp_weights(depth: int, hidden: int, columns: int) -> dict[str, Tensor]:
    return {
        "expand": matrix("expand", hidden, depth),
        "expand_bias": uniform("expand_bias", hidden),
        "project": matrix("project", columns, hidden),
        "project_bias": uniform("project_bias", columns),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "shape", [(2, 7, 7, 96, 384, 32), (1, 5, 3, 13, 31, 7), (1, 1, 1, 1, 1, 1), (1, 3, 9, 40, 193, 33)], ids=str
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_an_mlp_agrees_with_the_reference(shape: tuple[int, ...], dtype: torch.dtype, kernel: str) -> None:
    """GELU is within 2e-5, which moves a hidden integer by one now and then."""
    *size, depth, hidden, columns = shape
    weights, u = mlp_weights(depth, hidden, columns), uniform("u", *size, depth).to(dtype)
    scales, residual = {"input_scale": 1 / 127, "hidden_scale": 2.5 / 127}, uniform("residual", *size, columns).to(dtype)
    with nan_poisoned_empty():
        expected, actual = (
            prepare_mlp(**weights, **scales, dtype=dtype, backend=each)(u, residual=residual) for each in ("reference", kernel)
        )
    step = float(weights["project"].abs().max()) * scales["hidden_scale"]
    rounding = 2.0**-7 * float(expected.abs().max()) if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(actual, expected, rtol=0, atol=3 * step + rounding)
    if hidden == 1:
        return  # one rounding of one value has no average
    full = prepare_mlp(**weights, dtype=torch.float32, backend="reference")(u.float(), residual=residual.float())
    assert float((actual.float() - full).square().mean().sqrt()) < 0.02 * float(full.square().mean().sqrt()) + rounding


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("backend", BACKENDS)
def test_sums_of_the_largest_products_are_exact(sign: int, backend: str) -> None:
    """Where instructions of 8 bits saturate: every product is 127 squared."""
    depth = 1000
    weight = torch.full((33, depth), 127.0 * sign)
    x = torch.full((1, 1, 3, depth), 300.0)  # cut to 127
    out = prepare_linear(weight, torch.zeros(33), input_scale=1.0, dtype=torch.float32, backend=backend)(x)
    assert (out == sign * 127.0 * 127 * depth).all()


@pytest.mark.parametrize("spoilt", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_finite_reaches_its_row_and_no_other(spoilt: float, backend: str) -> None:
    x = uniform("x", 2, 3, 5, 40)
    x[1, 2, 3, 39] = spoilt
    linear = prepare_linear(matrix("weight", 33, 40), torch.zeros(33), input_scale=0.01, dtype=torch.float32, backend=backend)
    scales = {"input_scale": 0.01, "hidden_scale": 0.02}
    mlp = prepare_mlp(**mlp_weights(40, 500, 33), **scales, dtype=torch.float32, backend=backend)
    for op in (linear, mlp):
        lost = op(x).isnan()
        assert lost[1, 2, 3].all()
        assert lost.sum() == 33
    block = prepare_local_block(**block_weights(40), input_scale=0.01, dtype=torch.float32, backend=backend)
    lost = block(x).isnan()
    assert lost[1, 1:, 2:].all()  # its neighbours, at a corner of the map
    assert lost.sum() == 6 * 40


@pytest.mark.parametrize("kernel", KERNELS)
def test_bits_depend_on_neither_threads_nor_the_batch(kernel: str) -> None:
    linear = prepare_linear(
        matrix("weight", 70, 40), uniform("bias", 70), norm="row", input_scale=0.02, dtype=torch.float32, backend=kernel
    )
    scales = {"input_scale": 0.01, "hidden_scale": 0.02}
    mlp = prepare_mlp(**mlp_weights(40, 1000, 33), **scales, dtype=torch.float32, backend=kernel)
    block = prepare_local_block(**block_weights(40), input_scale=0.02, dtype=torch.float32, backend=kernel)
    for op in (linear, mlp, block):
        check_determinism(op, uniform("u", 2, 19, 23, 40))
        check_images_apart(op, uniform("u", 4, 5, 7, 40))


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_without_a_largest_value(backend: str) -> None:
    """Rows of zeros are zero; what is not finite does not vanish among integers."""
    weight = matrix("weight", 3, 8)
    weight[1], weight[2, 5] = 0, math.inf
    out = prepare_linear(weight, torch.ones(3), input_scale=0.1, dtype=torch.float32, backend=backend)(uniform("x", 1, 2, 2, 8))
    assert (out[..., 1] == 1).all()
    assert not out[..., 2].isfinite().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_0(backend: str) -> None:
    op = prepare_linear(matrix("weight", 3, 8), torch.ones(3), input_scale=0.1, dtype=torch.float32, backend=backend)
    assert op(torch.empty(0, 2, 2, 8)).shape == (0, 2, 2, 3)
    mlp = prepare_mlp(**mlp_weights(8, 9, 3), input_scale=0.1, hidden_scale=0.1, dtype=torch.float32, backend=backend)
    assert mlp(torch.empty(0, 2, 2, 8)).shape == (0, 2, 2, 3)
    block = prepare_local_block(**block_weights(8), input_scale=0.1, dtype=torch.float32, backend=backend)
    assert block(torch.empty(0, 2, 2, 8)).shape == (0, 2, 2, 8)


@pytest.mark.skipif(lib is None, reason="of the compiled library")
def test_every_instruction_set_multiplies_the_same() -> None:
    """Also the packed weight is the same for all of them."""
    assert lib is not None
    before, found = lib.isa(), []
    try:
        for name in lib.usable_isas():
            lib.select_isa(name)
            op = prepare_linear(matrix("w", 65, 100), torch.zeros(65), input_scale=0.01, dtype=torch.float32, backend="native")
            found.append((op.packed()["weight"], op(uniform("x", 1, 5, 7, 100))))
    finally:
        lib.select_isa(before)
    for weight, out in found[1:]:
        assert torch.equal(weight, found[0][0])
        torch.testing.assert_close(out, found[0][1], rtol=2e-7, atol=0)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input_scale": 0.0}, ValueError, "input_scale must be from 1e-30 to 1e30, got 0.0"),
    ({"input_scale": math.nan}, ValueError, "input_scale must be from 1e-30 to 1e30, got nan"),
    ({"input_scale": -1}, ValueError, "input_scale must be from 1e-30 to 1e30, got -1"),
    ({"input_scale": "1"}, TypeError, "input_scale must be a number or None, got str"),
    ({"input_scale": True}, TypeError, "input_scale must be a number or None, got bool"),
    (
        {"dtype": torch.float64, "backend": "reference"},
        TypeError,
        "dtype must be torch.float32 or torch.bfloat16 with input_scale",
    ),
    ({"backend": "triton"}, BackendError, "'triton' cannot serve prepare_"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[row[2][:40] for row in BAD])
def test_bad_scales_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    good: dict[str, Any] = {"input_scale": 1.0, "dtype": torch.float32}
    with pytest.raises(error, match=message):
        prepare_linear(torch.ones(3, 8), torch.ones(3), **{**good, **arguments})
    with pytest.raises(error, match=message):
        prepare_local_block(**block_weights(8), **{**good, **arguments})
    with pytest.raises(error, match=message):
        prepare_mlp(**mlp_weights(8, 9, 3), **{"hidden_scale": 1.0, **good, **arguments})
    with pytest.raises(error, match=message):
        prepare_mixer(torch.ones(8, 8, 3, 3), **{**good, **arguments})


def test_half_of_the_scales_are_refused() -> None:
    for given, missing in (("input_scale", "hidden_scale"), ("hidden_scale", "input_scale")):
        with pytest.raises(ValueError, match=f"{missing} must be given, as {given} is"):
            prepare_mlp(**mlp_weights(8, 9, 3), **{given: 1.0}, dtype=torch.float32)


def test_a_product_that_is_too_deep_for_its_sums_is_refused() -> None:
    with pytest.raises(ValueError, match="a product in int8 must be at most 133144 deep, got 133145"):
        prepare_linear(torch.ones(1, 133145), torch.ones(1), input_scale=1.0, dtype=torch.float32)


@pytest.mark.skipif(lib is None, reason="of the compiled library")
def test_direct_calls_are_checked() -> None:
    op = prepare_linear(matrix("weight", 3, 8), torch.ones(3), input_scale=0.1, dtype=torch.float32, backend="native")
    x, out, packed = torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 1, 3), op.packed()
    call = torch.ops.hifuse_fast.linear_int8_out
    numbers = (0, 0, 1e-5, 0, False)
    with pytest.raises(RuntimeError, match="weight must be packed for int8: 1152 contiguous bytes"):
        call([x], packed["weight"][:-1], packed["scale"], packed["bias"], None, out, *numbers, 10.0)
    with pytest.raises(RuntimeError, match="scale must be 3 contiguous float32 numbers"):
        call([x], packed["weight"], packed["scale"][:2], packed["bias"], None, out, *numbers, 10.0)
    with pytest.raises(RuntimeError, match="inverse must be a finite positive float32"):
        call([x], packed["weight"], packed["scale"], packed["bias"], None, out, *numbers, math.nan)
    block = prepare_local_block(**block_weights(8), input_scale=0.1, dtype=torch.float32, backend="native").packed()
    filters = [block["filters"], block["filter_bias"]]
    call, x, out = torch.ops.hifuse_fast.local_block_int8_out, torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 1, 8)
    with pytest.raises(RuntimeError, match="weight must be packed for int8: 1152 contiguous bytes"):
        call(x, *filters, block["weight"][:-1], block["scale"], block["bias"], out, 1e-6, 10.0)
    with pytest.raises(RuntimeError, match="scale must be 8 contiguous float32 numbers"):
        call(x, *filters, block["weight"], block["scale"][:2], block["bias"], out, 1e-6, 10.0)
    with pytest.raises(RuntimeError, match="inverse must be a finite positive float32"):
        call(x, *filters, block["weight"], block["scale"], block["bias"], out, 1e-6, 0.0)
    with pytest.raises(RuntimeError, match="weight must be a matrix of int8"):
        torch.ops.hifuse_fast.pack_int8(torch.zeros(3, 8), 0)
    with pytest.raises(RuntimeError, match="block must be a multiple of 32"):
        torch.ops.hifuse_fast.pack_int8(torch.zeros(3, 8, dtype=torch.int8), 33)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", kernels("prepare_linear", "triton", "cuda"))
def test_a_backend_without_int8_says_so(backend: str) -> None:
    """And never serves the call in another arithmetic."""
    with pytest.raises(BackendError, match=f"'{backend}' cannot serve prepare_linear: there is no .* kernel in int8"):
        prepare_linear(matrix("w", 8, 8), torch.zeros(8), input_scale=0.1, dtype=torch.float32, backend=backend)
    scales = {"input_scale": 0.1, "hidden_scale": 0.1}
    with pytest.raises(BackendError, match=f"'{backend}' cannot serve prepare_mlp: there is no .* kernel in int8"):
        prepare_mlp(**mlp_weights(8, 16, 8), **scales, dtype=torch.float32, backend=backend)
    with pytest.raises(BackendError, match=f"'{backend}' cannot serve prepare_local_block: there is no .* kernel in int8"):
        prepare_local_block(**block_weights(8), input_scale=0.1, dtype=torch.float32, backend=backend)
    with pytest.raises(BackendError, match=f"'{backend}' cannot serve prepare_mixer: there is no .* kernel in int8"):
        prepare_mixer(matrix("filters", 8, 8, 3, 3), input_scale=0.1, dtype=torch.float32, backend=backend)
