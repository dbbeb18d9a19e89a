"""The mixer's convolution and its gradients in the compiled library, in all of its ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import hifuse_fast
from hifuse_fast.ops import mixer
from hifuse_fast.ops.functions.mixer import native
from hifuse_fast.ops.prepared.mixer.bounds import bound
from hifuse_fast.testing import RULE, assert_within_rule, nan_poisoned_empty
from tests.support.functional import check_compiles, run
from tests.support.kernels import kernels, uniform

pytestmark = pytest.mark.usefixtures("way")
(KERNEL,) = kernels("mixer", "native")
NATIVE = pytest.mark.skipif(bool(KERNEL.marks[0].args[0]), reason=str(KERNEL.marks[0].kwargs["reason"]))
SIZES = {
    "odd": (2, 5, 7, 33),
    "blocks of channels": (1, 9, 6, 65),
    "one pixel": (3, 1, 1, 20),
    "one row": (1, 1, 9, 16),
    "one column": (2, 11, 1, 50),
    "two channels": (1, 1, 1, 2),
    "several runs": (2, 23, 30, 3),
    "a row longer than a run": (1, 2, 501, 2),
}


@pytest.fixture(params=["winograd", "neighbours", "PyTorch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(native, "FEW_PIXELS", 0 if request.param == "winograd" else 1 << 40)
    monkeypatch.setattr(native, "WIDE", 0 if request.param == "neighbours" else 1 << 40)
    return str(request.param)


def tensors(size: tuple[int, int, int, int]) -> dict[str, Tensor | None]:
    channels = size[3]
    weight = uniform("weight", channels, channels, 3, 3, scale=(3 / (9 * channels)) ** 0.5)
    return {"z": 0.5 + uniform("z", *size).cpu(), "weight": weight.cpu()}


def call(**given: Any) -> Tensor:
    return mixer(**given)


@NATIVE
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_outputs_and_gradients_obey_the_rule(size: tuple[int, int, int, int], way: str) -> None:
    given = tensors(size)
    eager, exact = (run(call, given, dtype, "reference", torch.float32) for dtype in (torch.float32, torch.float64))
    with nan_poisoned_empty():
        actual = run(call, given, torch.float32, "native", torch.float32)
    for name, value in actual.items():
        rule = bound("winograd4", torch.float32) if way == "winograd" and name != "dweight" else RULE
        assert_within_rule(value, eager[name], exact[name], what=name, bound=rule)
        assert value.is_contiguous(), name


@NATIVE
def test_bits_do_not_depend_on_the_threads() -> None:
    given, threads, found = tensors((2, 12, 9, 70)), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 1):
            torch.set_num_threads(count)
            found.append(run(call, given, torch.float32, "native", torch.float32))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(each[name], found[0][name]) for each in found for name in each)


@NATIVE
def test_strides() -> None:
    given = {name: t.float() for name, t in tensors((2, 4, 6, 8)).items() if t is not None}
    z, weight = given["z"], given["weight"]
    expected = run(call, {"z": z, "weight": weight}, torch.float32, "native", torch.float32)
    turned = weight.transpose(0, 1).contiguous().transpose(0, 1)
    for view in (z.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1), torch.cat([z, z], -1)[..., :8]):
        for filters in (turned, weight.contiguous(memory_format=torch.channels_last)):
            leaves = [view.detach().requires_grad_(), filters.detach().requires_grad_()]
            out = mixer(*leaves, backend="native")
            grads = torch.autograd.grad(out, leaves, uniform("the gradient of the output", *out.shape).float().cpu())
            assert torch.equal(out, expected["out"])
            assert torch.equal(grads[0], expected["dz"])
            assert torch.equal(grads[1], expected["dweight"])


@NATIVE
def test_batch_0_and_unwanted_gradients() -> None:
    given = {name: t.float() for name, t in tensors((2, 5, 4, 12)).items() if t is not None}
    none = {"z": given["z"][:0].clone().requires_grad_(), "weight": given["weight"].clone().requires_grad_()}
    mixer(**none, backend="native").sum().backward()
    assert all(torch.equal(leaf.grad, torch.zeros_like(leaf)) for leaf in none.values())
    for name, tensor in given.items():
        grads = []
        for backend in ("native", "reference"):
            leaf = tensor.clone().requires_grad_()
            grads += torch.autograd.grad(mixer(**{**given, name: leaf}, backend=backend).square().sum(), leaf)
        torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)


@NATIVE
@pytest.mark.parametrize("backend", ["auto", "native"])
def test_compile_sees_through_it(backend: str) -> None:
    check_compiles(call, tensors((2, 5, 7, 12)), backend)


@NATIVE
def test_auto_takes_it_in_float32_alone() -> None:
    z, weight = torch.randn(1, 4, 4, 6), torch.randn(6, 6, 3, 3)
    assert torch.equal(mixer(z, weight), mixer(z, weight, backend="native"))
    half = mixer(z.bfloat16(), weight.bfloat16())
    assert torch.equal(half, mixer(z.bfloat16(), weight.bfloat16(), backend="reference"))
    with pytest.raises(hifuse_fast.BackendError, match=r"its products are of float32, not torch\.bfloat16"):
        mixer(z.bfloat16(), weight.bfloat16(), backend="native")
    with pytest.raises(hifuse_fast.BackendError, match="no native kernel for the depthwise convolution"):
        mixer(z, weight[:, :1].contiguous(), backend="native")


Z = torch.zeros(1, 2, 3, 8)


@NATIVE
@pytest.mark.parametrize("bad", [Z[0], Z.double(), Z.transpose(1, 2)], ids=["3-D", "float64", "strided"])
def test_the_operators_refuse_what_they_cannot_read(bad: Tensor) -> None:
    with pytest.raises(RuntimeError, match="z must be"):
        torch.ops.hifuse_fast.mixer_convolution(bad, torch.zeros(8, 8, 3, 3), False)
    with pytest.raises(RuntimeError, match="z must be"):
        torch.ops.hifuse_fast.mixer_filters_gradient(Z, bad)
