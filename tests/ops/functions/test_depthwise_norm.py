"""Depthwise convolution with layer normalisation: the reference against its definition, the kernels against the reference."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.backends.select import BackendError
from hifuse_fast.ops import depthwise_norm
from hifuse_fast.testing import relative_error
from tests.support.functional import DTYPES, check_compiles, check_parity
from tests.support.kernels import DEVICE, kernels, uniform

pytestmark = pytest.mark.gpu
KERNELS = kernels("depthwise_norm", "triton", "cuda")
# B, H, W, C
SHAPES = [(2, 1, 1, 17), (1, 1, 5, 33), (2, 5, 1, 8), (1, 7, 7, 96), (1, 9, 13, 16), (2, 3, 4, 1)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture
def few_programs() -> Iterator[None]:
    """On a CPU, where a program takes its time, larger tiles and two programs; a GPU runs what its table says."""
    config = {"elements": 256, "run": 2, "rows": 3, "programs": 2, "num_warps": 1}
    with contextlib.ExitStack() as stack:
        for kernel in ("forward", "backward_norm", "backward_filters") if DEVICE.type == "cpu" else ():
            slices = {"channels": 32} if kernel == "backward_filters" else {}
            stack.enter_context(tables.override(f"depthwise_norm_{kernel}", config | slices))
        yield


def make(*shape: int) -> dict[str, Tensor | None]:
    channels = shape[-1]
    return {
        "x": 0.5 + uniform("x", *shape),
        "filters": uniform("filters", channels, 1, 3, 3),
        "filter_bias": uniform("filter_bias", channels),
        "weight": 1 + 0.5 * uniform("weight", channels),
        "bias": uniform("bias", channels),
    }


def by_definition(x: Tensor, filters: Tensor, filter_bias: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Pixel by pixel, from the text."""
    batch, height, width, _ = x.shape
    out = torch.empty_like(x)
    for b, i, j in itertools.product(range(batch), range(height), range(width)):
        pixel = filter_bias.clone()
        for di, dj in itertools.product((-1, 0, 1), repeat=2):
            if 0 <= i + di < height and 0 <= j + dj < width:
                pixel += filters[:, 0, 1 + di, 1 + dj] * x[b, i + di, j + dj]
        centred = pixel - pixel.sum() / len(pixel)
        out[b, i, j] = centred / (centred.square().sum() / len(pixel) + eps).sqrt() * weight + bias
    return out


@shapes
def test_reference_is_the_definition(shape: tuple[int, ...]) -> None:
    tensors = make(*shape)
    expected = by_definition(*tensors.values(), eps=0.01)
    assert relative_error(depthwise_norm(**tensors, eps=0.01, backend="reference"), expected) < 1e-12


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@shapes
def test_kernel_obeys_the_rule(shape: tuple[int, ...], dtype: torch.dtype, kernel: str) -> None:
    # One channel is its own mean: what is zero exactly is a difference of numbers times 1 / sqrt(eps).
    cancelled = dict.fromkeys(("dx", "dfilters", "dfilter_bias"), 1e3) if shape[-1] == 1 else {}
    check_parity(depthwise_norm, make(*shape), dtype, kernel, cancelled)


@pytest.mark.parametrize("kernel", KERNELS)
def test_programs_that_take_several_tiles(kernel: str) -> None:
    """Two programs for tiles of two rows, the last of them below the map; and slices of the channels."""
    config = {"elements": 32, "run": 2, "rows": 2, "programs": 2, "num_warps": 1}
    with (
        tables.override("depthwise_norm_forward", config),
        tables.override("depthwise_norm_backward_norm", config),
        tables.override("depthwise_norm_backward_filters", config | {"channels": 4}),
    ):
        check_parity(depthwise_norm, make(1, 3, 5, 7), torch.float32, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("run", [1, 2, 3])
def test_pixels_that_several_warps_share(run: int, kernel: str) -> None:
    """Runs of every length, on a map that has pixels beside its whole ones; a pixel's sums are over 64 threads."""
    config = {"elements": 128, "run": run, "rows": 2, "programs": 3, "num_warps": 2}
    with (
        tables.override("depthwise_norm_forward", config),
        tables.override("depthwise_norm_backward_norm", config),
        tables.override("depthwise_norm_backward_filters", config | {"channels": 64}),
    ):
        check_parity(depthwise_norm, make(1, 2, 4, 192), torch.float32, kernel)


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_far_from_zero_keep_their_variance(kernel: str) -> None:
    """The mean is subtracted before squaring: a variance of 1 beside a mean of 1000 is no difference of large numbers."""
    tensors = make(1, 2, 2, 64)
    tensors["filter_bias"] = 1000 + tensors["filter_bias"]
    # Of 9 sums near 1000 the roundings come out in another order; without centring the variance would be off by 10 %.
    check_parity(depthwise_norm, tensors, torch.float32, kernel, {"dfilters": 1e3})


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("kernel", KERNELS)
def test_strides(kernel: str) -> None:
    tensors = {name: t.float() for name, t in make(2, 2, 3, 4).items()}
    x = tensors.pop("x")
    views = {
        "NCHW memory": x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "W and H swapped": x.transpose(1, 2).contiguous().transpose(1, 2),
        "slice of channels": torch.cat([x, x], -1)[..., :4],
        "every other row": torch.stack([x, x], 2).flatten(1, 2)[:, ::2],
        "expanded batch": x[:1].expand(2, -1, -1, -1),
    }
    results = {}
    for name, view in {"contiguous": x, "contiguous, expanded": x[:1].repeat(2, 1, 1, 1), **views}.items():
        leaf = view.detach().requires_grad_()
        out = depthwise_norm(leaf, **tensors, backend=kernel)
        out.sum().backward()  # the gradient is an expanded scalar
        assert out.is_contiguous(), name
        results[name] = out, leaf.grad
    for name in views:
        expected = results["contiguous, expanded" if name == "expanded batch" else "contiguous"]
        assert all(map(torch.equal, results[name], expected)), name


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_batch_0(backend: str) -> None:
    leaves = {name: t.float().requires_grad_() for name, t in make(0, 5, 4, 8).items()}
    out = depthwise_norm(**leaves, backend=backend)
    assert out.shape == (0, 5, 4, 8)
    out.sum().backward()
    assert all(torch.equal(leaf.grad, torch.zeros_like(leaf)) for leaf in leaves.values())


@pytest.mark.parametrize("backend", ["auto", "reference", *KERNELS])
def test_compile_sees_through_it(backend: str) -> None:
    check_compiles(depthwise_norm, make(1, 2, 3, 8), backend)


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_under_autocast_it_is_as_in_pytorch(dtype: torch.dtype, kernel: str) -> None:
    tensors = {name: t.float() for name, t in make(1, 3, 4, 8).items()}
    results = {}
    for backend in (kernel, "reference"):
        leaves = {name: t.to(dtype if name == "x" else torch.float32).requires_grad_() for name, t in tensors.items()}
        with torch.autocast(DEVICE.type, torch.bfloat16):
            out = depthwise_norm(**leaves, backend=backend)
        out.backward(uniform("gradient", *out.shape).to(out.dtype))
        results[backend] = {"out": out.detach()} | {name: leaf.grad for name, leaf in leaves.items()}
    for name, value in results["reference"].items():
        assert results[kernel][name].dtype == value.dtype, name
        assert relative_error(results[kernel][name], value) < 0.02, name


@pytest.mark.parametrize("kernel", KERNELS)
def test_under_autocast_the_convolution_takes_rounded_operands(kernel: str) -> None:
    """Rounded, all values of the map and all filters are 1, and nothing is left to normalise."""
    x, filters = 1 + 1e-4 * uniform("x", 1, 3, 3, 8).float().abs(), 1 + 1e-4 * uniform("f", 8, 1, 3, 3).float().abs()
    zero, one = torch.zeros(8, device=DEVICE), torch.ones(8, device=DEVICE)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert not depthwise_norm(x, filters, zero, one, zero, eps=1e-12, backend=kernel).any()
    assert depthwise_norm(x, filters, zero, one, zero, eps=1e-12, backend=kernel).std() > 0.5


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_meta_device(backend: str) -> None:
    tensors = {name: t.bfloat16().to("meta").requires_grad_() for name, t in make(2, 9, 8, 16).items()}
    out = depthwise_norm(**tensors, backend=backend)
    assert (out.device.type, out.shape, out.dtype) == ("meta", (2, 9, 8, 16), torch.bfloat16)
    out.sum().backward()
    assert all(t.grad.shape == t.shape and t.grad.dtype == t.dtype for t in tensors.values())


X, FILTERS, ONE = torch.randn(1, 3, 5, 8), torch.randn(8, 1, 3, 3), torch.ones(8)
BAD = [
    ({"x": X[0]}, ValueError, r"x must be \[B, H, W, C\] with H, W and C at least 1, got \[3, 5, 8\]"),
    ({"x": X[:, :0]}, ValueError, r"x must be \[B, H, W, C\] .* got \[1, 0, 5, 8\]"),
    ({"x": X.long()}, TypeError, "x must be a floating-point tensor, got torch.int64"),
    ({"filters": FILTERS[:, 0]}, ValueError, r"filters must be \[8, 1, 3, 3\], got \[8, 3, 3\]"),
    ({"filters": FILTERS[:7]}, ValueError, r"filters must be \[8, 1, 3, 3\], got \[7, 1, 3, 3\]"),
    ({"filter_bias": None}, TypeError, "filter_bias must be a torch.Tensor, got NoneType"),
    ({"filter_bias": ONE[:7]}, ValueError, r"filter_bias must be \[8\], got \[7\]"),
    ({"weight": ONE.double()}, TypeError, "weight must be torch.float32 like the map, or float32, got torch.float64"),
    ({"bias": ONE.to("meta")}, ValueError, "bias must be on the device of the map, cpu, got meta"),
    ({"eps": 0}, ValueError, "eps must be a positive number, got 0"),
    ({"backend": "mps"}, ValueError, "backend must be one of auto, reference, native, triton, cuda, got 'mps'"),
]


@pytest.mark.parametrize(("changed", "error", "message"), BAD)
def test_bad_input_is_named(changed: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        depthwise_norm(**{"x": X, "filters": FILTERS, "filter_bias": ONE, "weight": ONE, "bias": ONE, **changed})


def test_a_map_that_no_program_holds_is_refused() -> None:
    tensors = {name: t.to("meta") for name, t in make(1, 1, 1, 4097).items()}
    with pytest.raises(BackendError, match=r"(at most 4096 channels, got 4097|triton)"):
        depthwise_norm(**tensors, backend="triton")
