"""Batch normalisation: the reference against its definition and PyTorch's module, the kernels against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hifuse_fast.ops import batch_norm
from hifuse_fast.testing import relative_error
from tests.support.functional import DTYPES, check_compiles, check_parity
from tests.support.kernels import DEVICE, kernels, uniform

pytestmark = pytest.mark.gpu
KERNELS = kernels("batch_norm", "triton", "cuda")
# B, H, W, C; options; whether there is a residual
CASES = [
    ((2, 5, 7, 17), {"training": True}, False),
    ((3, 4, 6, 33), {"training": True, "activation": "relu", "pool": True}, False),
    ((1, 9, 5, 300), {"training": True, "activation": "gelu"}, True),
    ((2, 3, 3, 1), {"training": True, "activation": "sigmoid"}, False),
    ((2, 4, 4, 12), {"training": False, "activation": "relu", "pool": True}, True),
    ((1, 1, 1, 40), {"training": False}, True),
]
named = pytest.mark.parametrize(("shape", "options", "residual"), CASES, ids=str)


def make(shape: tuple[int, ...], options: dict[str, Any], residual: bool) -> dict[str, Tensor | None]:
    batch, height, width, channels = shape
    out = (batch, height // 2, width // 2, channels) if options.get("pool") else shape
    return {
        "x": 0.5 + uniform("x", *shape),
        "weight": 1 + 0.5 * uniform("weight", channels),
        "bias": uniform("bias", channels),
        "residual": uniform("residual", *out) if residual else None,
    }


def call_of(channels: int, **options: Any) -> Callable[..., Tensor]:
    """The op with running statistics of its own."""
    statistics = 0.3 * uniform("mean", channels), 1 + 0.5 * uniform("var", channels)

    def call(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, backend: str) -> Tensor:
        running = [each.to(x.dtype, copy=True) for each in statistics]
        return batch_norm(x, weight, bias, *running, residual=residual, backend=backend, **options)

    return call


@named
def test_reference_is_the_definition(shape: tuple[int, ...], options: dict[str, Any], residual: bool) -> None:
    tensors, eps = make(shape, options, residual), 0.01
    x = tensors["x"]
    mean, var = 0.3 * uniform("mean", shape[3]), 1 + 0.5 * uniform("var", shape[3])
    if options["training"]:
        mean = x.flatten(0, 2).mean(0)
        var = (x - mean).square().flatten(0, 2).mean(0)
    y = (x - mean) / (var + eps).sqrt() * tensors["weight"] + tensors["bias"]
    acts = {"relu": lambda z: z.clamp(min=0), "gelu": lambda z: z * (1 + torch.erf(z / 2**0.5)) / 2}
    acts["sigmoid"] = lambda z: 1 / (1 + (-z).exp())
    y = acts.get(options.get("activation", ""), lambda z: z)(y)
    if options.get("pool"):
        y = (y[:, ::2, ::2] + y[:, 1::2, ::2] + y[:, ::2, 1::2] + y[:, 1::2, 1::2]) / 4
    y = y if tensors["residual"] is None else y + tensors["residual"]
    assert relative_error(call_of(shape[3], eps=eps, **options)(**tensors, backend="reference"), y) < 1e-12


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@named
def test_kernel_obeys_the_rule(
    shape: tuple[int, ...], options: dict[str, Any], residual: bool, dtype: torch.dtype, kernel: str
) -> None:
    check_parity(call_of(shape[3], **options), make(shape, options, residual), dtype, kernel)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0])
def test_running_statistics_are_updated_as_by_the_module(momentum: float, backend: str) -> None:
    x = (3 + 2 * uniform("x", 4, 5, 6, 9)).float()
    norm = nn.BatchNorm2d(9, momentum=momentum).to(DEVICE)
    norm.running_mean.copy_(uniform("mean", 9))
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    norm(x.permute(0, 3, 1, 2).contiguous())
    batch_norm(x, norm.weight, norm.bias, mean, var, training=True, momentum=momentum, backend=backend)
    torch.testing.assert_close(mean, norm.running_mean)
    torch.testing.assert_close(var, norm.running_var)
    before = mean.clone()
    batch_norm(x, norm.weight, norm.bias, mean, var, training=False, backend=backend)
    batch_norm(x, norm.weight, norm.bias, training=True, backend=backend)
    assert torch.equal(mean, before)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_mean_far_from_zero_does_not_swallow_the_variance(kernel: str) -> None:
    """Sums of squares would: 1e4 squared is 1e8, and float32 has 7 digits."""
    x = (1e4 + uniform("x", 4, 9, 8, 5)).float()
    mean, var = torch.zeros(5, device=DEVICE), torch.zeros(5, device=DEVICE)
    batch_norm(x, torch.ones_like(mean), torch.zeros_like(mean), mean, var, training=True, momentum=1, backend=kernel)
    exact = x.double().flatten(0, 2)
    assert relative_error(mean, exact.mean(0)) < 1e-6
    assert relative_error(var, exact.var(0)) < 1e-5


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_batch_0(backend: str) -> None:
    weight = torch.ones(8, device=DEVICE, requires_grad=True)
    x = torch.empty(0, 4, 4, 8, device=DEVICE, requires_grad=True)
    zeros, ones = torch.zeros(8, device=DEVICE), torch.ones(8, device=DEVICE)
    out = batch_norm(x, weight, zeros, zeros, ones, training=False, pool=True, backend=backend)
    assert out.shape == (0, 2, 2, 8)
    out.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("backend", ["auto", "reference", *KERNELS])
def test_compile_sees_through_it(backend: str) -> None:
    options = {"training": True, "activation": "gelu"}
    check_compiles(call_of(8, **options), make((2, 3, 4, 8), options, True), backend)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_mixed_dtypes(backend: str) -> None:
    """bfloat16 maps with float32 parameters, as under autocast, onto a float32 residual."""
    x, weight, bias, residual = (t.float().requires_grad_() for t in make((2, 3, 4, 8), {}, True).values())
    leaf = x.detach().bfloat16().requires_grad_()
    out = batch_norm(leaf, weight, bias, training=True, residual=residual, backend=backend)
    out.sum().backward()
    assert out.dtype == torch.float32
    assert [t.grad.dtype for t in (leaf, weight, bias, residual)] == [torch.bfloat16] + 3 * [torch.float32]


X, ONE = torch.randn(1, 3, 4, 8), torch.ones(8)
BAD = [
    ({"x": X[0]}, ValueError, r"x must be \[B, H, W, C\] .* got \[3, 4, 8\]"),
    ({"weight": ONE[:7]}, ValueError, r"weight must be \[8\], got \[7\]"),
    ({"running_mean": ONE.double()}, TypeError, "running_mean must be torch.float32 like the map"),
    ({"training": False}, ValueError, "running_mean must be a tensor unless training, got None"),
    ({"training": 1}, TypeError, "training must be True or False, got 1"),
    ({"x": X[:, :1, :1]}, ValueError, r"x must have more than one pixel a channel in training, got \[1, 1, 1, 8\]"),
    ({"pool": True}, ValueError, r"x must have even H and W with pool, got \[1, 3, 4, 8\]"),
    ({"residual": X[:, :2]}, ValueError, r"residual must be \[1, 3, 4, 8\], got \[1, 2, 4, 8\]"),
    ({"activation": "silu"}, ValueError, "activation must be one of none, relu, gelu, sigmoid, got 'silu'"),
    ({"momentum": 1.5}, ValueError, "momentum must be at least 0 and below 1, got 1.5"),
]


@pytest.mark.parametrize(("changed", "error", "message"), BAD)
def test_bad_input_is_named(changed: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        batch_norm(**{"x": X, "weight": ONE, "bias": ONE, "training": True, **changed})


@pytest.mark.parametrize("activation", ["none", "sigmoid"])
def test_gradients_outside_training_do_not_depend_on_strides(activation: str) -> None:
    x, vector, grad = torch.randn(2, 2, 1, 20), torch.rand(20) + 0.5, torch.randn(2, 2, 1, 20)

    def gradient(x: Tensor) -> Tensor:
        x.requires_grad_()
        y = batch_norm(x, vector, vector, vector, vector, training=False, activation=activation, backend="reference")
        return torch.autograd.grad(y, x, grad)[0]

    channels_first = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    torch.testing.assert_close(gradient(channels_first), gradient(x.clone()))
