"""A training step of the whole network on the Triton kernels: loss, gradients, running statistics against the reference."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hifuse_fast
from hifuse_fast import HiFuse
from hifuse_fast.backends import select
from hifuse_fast.testing import golden_image, golden_weights, nan_poisoned_empty, relative_error, wrong_gradients
from tests.support.golden import check_training_step, make
from tests.support.kernels import DEVICE, kernels

pytestmark = pytest.mark.gpu
KERNELS = kernels("linear", "triton", "cuda")
# Every kind of block, shifted windows and padded ones, in a size for the interpreter.
NARROW: dict[str, Any] = {
    "num_classes": 5,
    "dims": (8, 16, 24, 32),
    "depths": (2, 1, 1, 2),
    "conv_depths": (1, 1, 1, 1),
    "num_heads": (1, 2, 3, 4),
}


@dataclass(frozen=True)
class Step:
    """What one training step leaves behind."""

    loss: Tensor
    logits: Tensor
    grads: dict[str, Tensor]
    statistics: dict[str, Tensor]
    served: set[tuple[str, str]]  #: ops and the backends that they were given


def _note(served: set[tuple[str, str]]) -> Callable[..., Any]:
    """`backends.select.choose` that keeps which op was given to which backend."""
    choose = select.choose

    def noted(op: str, backend: str, **call: Any) -> str:
        found = choose(op, backend, **call)
        served.add((op, found))
        return found

    return noted


def train(
    backend: str, dtype: torch.dtype, autocast: torch.dtype | None = None, mixer: str = "dense", again: bool = False
) -> Step:
    """One step of a narrow network with the golden weights on the golden image; kept, unless it shall be done `again`."""
    return _train(backend, dtype, autocast, mixer, again)


@functools.cache
def _train(backend: str, dtype: torch.dtype, autocast: torch.dtype | None, mixer: str, again: bool) -> Step:
    model = HiFuse(**NARROW, mixer=mixer).double()
    golden_weights(model)
    model = model.to(DEVICE, dtype).train()
    images = golden_image(2, 32, 64).to(DEVICE, dtype)
    enabled = autocast is not None
    with (
        hifuse_fast.use_backend(backend),
        torch.autocast(DEVICE.type, autocast or torch.bfloat16, enabled=enabled),
        mock.patch.object(select, "choose", side_effect=_note(served := set())),
    ):
        logits = model(images)
    loss = F.cross_entropy(logits.float() if enabled else logits, torch.tensor([0, 3], device=DEVICE))
    with hifuse_fast.use_backend(backend):
        loss.backward()
    return Step(
        loss.detach(),
        logits.detach(),
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        {name: b for name, b in model.named_buffers() if "running" in name or "tracked" in name},
        served,
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mixer", ["dense", pytest.param("depthwise", marks=pytest.mark.slow)])  # whose op has its own tests
def test_a_training_step_is_that_of_the_reference(mixer: str, kernel: str) -> None:
    exact, eager = (train("reference", dtype, mixer=mixer) for dtype in (torch.float64, torch.float32))
    with nan_poisoned_empty():
        actual = train(kernel, torch.float32, mixer=mixer)
    assert set(actual.grads) == set(exact.grads)
    assert relative_error(actual.loss, exact.loss) < 1e-5
    assert relative_error(actual.logits, exact.logits) < 1e-5
    # A gradient that is 0 but for rounding (of what a batch norm subtracts again) has no size of its own to be compared with.
    scale = max(grad.abs().max().item() for grad in exact.grads.values())
    for name, grad in actual.grads.items():
        allowed = 4 * (eager.grads[name].double() - exact.grads[name]).abs().max().item() + 1e-6 * scale
        assert (grad.double() - exact.grads[name]).abs().max().item() <= allowed, name
    for name, value in actual.statistics.items():
        torch.testing.assert_close(value.double(), exact.statistics[name].double(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow  # the tests of each op have its dtypes under autocast
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_training_step_under_autocast(kernel: str) -> None:
    exact = train("reference", torch.float64)
    eager, actual = (train(backend, torch.float32, torch.bfloat16) for backend in ("reference", kernel))
    assert {name: g.dtype for name, g in actual.grads.items()} == {name: g.dtype for name, g in eager.grads.items()}
    assert relative_error(actual.logits, exact.logits) < 2 * relative_error(eager.logits, exact.logits) + 0.01
    assert wrong_gradients(actual.grads, [eager.grads], exact.grads, torch.finfo(torch.bfloat16).eps) == []


@pytest.mark.skipif(DEVICE.type != "cuda", reason="the full width takes the interpreter hours: it needs a CUDA device")
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_training_step_at_full_width_has_the_official_numbers(kernel: str) -> None:
    model = make("tiny").to(DEVICE, torch.float32)
    check_training_step(model, kernel)


@pytest.mark.slow  # the parity tests of each op compare a second call with the first
@pytest.mark.parametrize("kernel", KERNELS)
def test_two_steps_are_the_same_bits(kernel: str) -> None:
    first, second = (train(kernel, torch.float32, again=again) for again in (False, True))
    assert [name for name, grad in first.grads.items() if not torch.equal(grad, second.grads[name])] == []


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_op_is_served(kernel: str) -> None:
    """Nothing goes to the reference unseen: a backend asked for by name raises where it cannot serve."""
    ops = {
        "window_attention",
        "linear",
        "layer_norm",
        "depthwise_norm",
        "concat_norm",
        "batch_norm",
        "max_mean",
        "mixer",
        "mlp",
    }
    assert train(kernel, torch.float32).served == {(op, kernel) for op in ops}


@pytest.mark.slow  # those of each op compile it
@pytest.mark.parametrize("kernel", KERNELS)
def test_compile_takes_the_whole_network_as_one_graph(kernel: str) -> None:
    torch._dynamo.reset()  # as in a process of its own: other tests have compiled other sizes
    model = HiFuse(**NARROW).to(DEVICE).train()
    images = golden_image(2, 32, 32).to(DEVICE).float()
    with hifuse_fast.use_backend("reference"):
        expected = model(images)
    with hifuse_fast.use_backend(kernel):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(images)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)
    compiled.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_sync_batch_norm_takes_the_place_of_batch_norm() -> None:
    """Converted, the fusion gives the same in eval mode: its maps stay channels last, SyncBatchNorm wants channels first."""
    model = HiFuse(**NARROW).eval()
    images = golden_image(1, 32, 64).float()
    expected = model(images)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    torch.testing.assert_close(converted(images), expected)
