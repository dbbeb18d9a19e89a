"""NaN and infinities in every input of every op: they reach what they reach in the reference, and no other image.

A Winograd tile, or a pair of Strassen's rows, may be spoilt as a whole. An infinity may become NaN on its way, never finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hifuse_fast import ops
from tests.support.calls import FUNCTIONS, Call, Tensors, every_call
from tests.support.kernels import device_of, kernels
from tests.support.prepared import place

pytestmark = pytest.mark.gpu
VALUES = (math.nan, math.inf, -math.inf)


def spoil_images(x: Tensor, share: float) -> Tensor:
    """One element of each image but the first is of VALUES; it lies at this share of the way through an image."""
    x = x.clone()
    for image, value in enumerate(VALUES, 1):
        x[image][tuple(math.floor(share * (size - 1)) for size in x.shape[1:])] = value
    return x


def check(call: Call, kernel: str, tensors: Tensors, what: str, wrong: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """No value is finite that is `wrong` in the reference. Returns the kernel's results.

    In float64: of 16 bits the library of some CPUs multiplies a NaN by zeros that are not of the map.
    """
    results = call.outputs(kernel, tensors)
    exact = {name: tensor.double() for name, tensor in tensors.items()}
    for actual, expected in zip(results, call.outputs("reference", exact), strict=True):
        lost = actual.isfinite() & wrong(expected)
        assert not lost.any(), f"{what}: {int(lost.sum())} of {int(wrong(expected).sum())} values are finite"
    return results


@pytest.mark.parametrize(("call", "kernel", "dtype"), every_call())
def test_in_a_map(call: Call, kernel: str, dtype: torch.dtype) -> None:
    tensors = place(kernel, {**call.maps, **call.weights}, dtype)
    for name in call.maps:
        for at in (0.0, 0.4, 1.0) if kernel == "native" else (0.4,):  # Triton's interpreter is slow
            spoilt = {**tensors, name: spoil_images(tensors[name], at)}
            results = check(call, kernel, spoilt, f"{name} at {at}", lambda x: ~x.isfinite())
            if call.images_apart:
                assert all(x[0].isfinite().all() for x in results), f"{name} at {at} reached another image"


@pytest.mark.parametrize(("call", "kernel", "dtype"), every_call(FUNCTIONS))
def test_in_a_weight(call: Call, kernel: str, dtype: torch.dtype) -> None:
    """Of the weights that are given at every call. A negative infinity stands beside a positive one.

    Where the reference makes NaN of an infinite weight, as its batch norm does of infinity times a mean of zero, a kernel may
    have the limit.
    """
    maps, weights = place(kernel, ({name: x[:1] for name, x in call.maps.items()}, call.weights), dtype)
    for name, weight in weights.items():
        for values in ((math.nan,), (math.inf, -math.inf)):
            spoilt = weight.clone()
            spoilt.view(-1)[weight.numel() // 2 :][: len(values)] = torch.tensor(values)
            check(
                call,
                kernel,
                {**maps, **weights, name: spoilt},
                f"{values} in {name}",
                Tensor.isnan if len(values) == 1 else Tensor.isinf,
            )


@pytest.mark.parametrize("kernel", kernels("window_attention", "native", "triton", "cuda"))
@pytest.mark.parametrize("value", [-math.inf, -1e37])
def test_every_score_of_a_query(kernel: str, value: float) -> None:
    """A query whose scores are all minus infinity has no softmax: NaN, not the mean of keys that are not there.

    One whose scores are all very small has one.
    """
    qkv = torch.ones(1, 3, 3, 3 * 8, device=device_of(kernel))
    qkv[..., 8] = value  # of the keys
    table = torch.zeros(25, 1, device=qkv.device)
    expected = ops.window_attention(qkv, table, num_heads=1, window_size=3, backend="reference")
    actual = ops.window_attention(qkv, table, num_heads=1, window_size=3, backend=kernel)
    torch.testing.assert_close(actual, expected, equal_nan=True)
    assert bool(actual.isnan().all()) == math.isinf(value)


def largest_with_nan(over: str, kernel: str) -> Tensor:
    """The gradient of a map's largest values where it has a NaN in a place that no share begins with."""
    x = torch.zeros(1, 5, 6, 4, device=device_of(kernel))
    x[0, 3, 2, 1] = math.nan
    x.requires_grad_()
    (grad,) = torch.autograd.grad(ops.max_mean(x, over=over, backend=kernel).select(3 if over == "channels" else 1, 0).sum(), x)
    return grad


@pytest.mark.parametrize("over", ["channels", "pixels"])
@pytest.mark.parametrize("kernel", kernels("max_mean", "triton", "cuda"))
def test_the_gradient_of_the_largest_goes_to_the_nan(kernel: str, over: str) -> None:
    assert torch.equal(largest_with_nan(over, kernel), largest_with_nan(over, "reference").to(device_of(kernel)))
