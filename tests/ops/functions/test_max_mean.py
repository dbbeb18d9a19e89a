"""Largest value and mean over channels or pixels: the reference against its definition, the kernels against the reference."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from hifuse_fast.backends import tables
from hifuse_fast.ops import max_mean
from tests.support.functional import DTYPES, check_compiles, check_parity, run
from tests.support.kernels import DEVICE, kernels, uniform

pytestmark = pytest.mark.gpu
KERNELS = kernels("max_mean", "triton", "cuda")
SHAPES = [(2, 5, 7, 17), (1, 12, 9, 96), (3, 1, 1, 1), (2, 3, 1, 300), (2, 18, 19, 9)]
OVER = ["channels", "pixels"]
named = pytest.mark.parametrize("shape", SHAPES, ids=str)
over_both = pytest.mark.parametrize("over", OVER)


@over_both
@named
def test_reference_is_the_definition(shape: tuple[int, ...], over: str) -> None:
    x = uniform("x", *shape)
    out = max_mean(x, over=over, backend="reference")
    if over == "channels":
        expected = torch.stack([torch.stack([row.max(), row.sum() / len(row)]) for row in x.flatten(0, 2)]).reshape(out.shape)
    else:
        pixels = x.flatten(1, 2)
        expected = torch.stack([pixels.amax(1), pixels.sum(1) / pixels.shape[1]], 1)[:, :, None]
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@over_both
@named
def test_kernel_obeys_the_rule(shape: tuple[int, ...], over: str, dtype: torch.dtype, kernel: str) -> None:
    check_parity(partial(max_mean, over=over), {"x": uniform("x", *shape)}, dtype, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@over_both
def test_of_equal_values_the_first_gets_the_gradient(over: str, kernel: str) -> None:
    """Few values, all below zero, shares of one pixel: ties within tiles and over shares, and padding that must not win."""
    x = torch.randint(-3, 0, (3, 6, 5, 20), generator=torch.Generator().manual_seed(0)).double().to(DEVICE)
    tiny = {"elements": 16, "channels": 16, "programs": 10**6, "num_warps": 4}
    with tables.override("max_mean_pixels", tiny):
        actual = run(partial(max_mean, over=over), {"x": x}, torch.float32, kernel, torch.float32)
    exact = run(partial(max_mean, over=over), {"x": x}, torch.float64, "reference", torch.float64)
    for name, value in actual.items():
        torch.testing.assert_close(value.double(), exact[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
@over_both
def test_batch_0(over: str, backend: str) -> None:
    x = torch.empty(0, 4, 3, 8, device=DEVICE, requires_grad=True)
    out = max_mean(x, over=over, backend=backend)
    assert out.shape == {"channels": (0, 4, 3, 2), "pixels": (0, 2, 1, 8)}[over]
    out.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("kernel", KERNELS)
@over_both
def test_strides(over: str, kernel: str) -> None:
    x = uniform("x", 2, 4, 6, 8).float()
    view = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(max_mean(view, over=over, backend=kernel), max_mean(x, over=over, backend=kernel))


@pytest.mark.parametrize("backend", ["auto", "reference", *KERNELS])
@over_both
def test_compile_sees_through_it(over: str, backend: str) -> None:
    check_compiles(partial(max_mean, over=over), {"x": uniform("x", 2, 3, 4, 8)}, backend)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_meta_device(backend: str) -> None:
    out = max_mean(torch.empty(2, 9, 8, 16, device="meta", dtype=torch.bfloat16), over="pixels", backend=backend)
    assert (out.device.type, out.shape, out.dtype) == ("meta", (2, 2, 1, 16), torch.bfloat16)


@pytest.mark.parametrize(
    ("x", "over", "error", "message"),
    [
        (torch.randn(3, 4, 8), "pixels", ValueError, r"x must be \[B, H, W, C\] .* got \[3, 4, 8\]"),
        (torch.ones(1, 3, 4, 8).long(), "pixels", TypeError, "x must be a floating-point tensor, got torch.int64"),
        (torch.randn(1, 3, 4, 8), "rows", ValueError, "over must be one of channels, pixels, got 'rows'"),
    ],
)
def test_bad_input_is_named(x: torch.Tensor, over: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        max_mean(x, over=over)
