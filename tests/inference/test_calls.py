"""Calls of the frozen network that would give a wrong result without a word are refused; what was edited on it counts."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from hifuse_fast import OptimizedHiFuse, load_optimized, optimize_for_inference
from tests.support.frozen import image, make

X = image(dtype=torch.float32)
BACKENDS = ["reference", "auto"]


@pytest.fixture(scope="module")
def model() -> Any:
    return make(torch.float32, num_heads=(1, 1, 2, 4))  # all served by native ops, so that calls are repeated from a tape


@pytest.fixture(scope="module", params=BACKENDS)
def network(request: Any, model: Any) -> OptimizedHiFuse:
    return optimize_for_inference(model, backend=request.param)


# ---- Refused -------------------------------------------------------------------------------------------------------------


def dual(network: nn.Module) -> Any:
    with forward_ad.dual_level():
        return network(forward_ad.make_dual(X, X))


TRANSFORMS: dict[str, Callable[[nn.Module], Any]] = {
    "jvp": lambda f: torch.func.jvp(f, (X,), (X,)),
    "grad": lambda f: torch.func.grad(lambda x: f(x).sum())(X),
    "vjp": lambda f: torch.func.vjp(f, X),
    "jacfwd": lambda f: torch.func.jacfwd(f)(X),
    "vmap": lambda f: torch.vmap(f)(X[None]),
    "no_grad within": lambda f: torch.func.jvp(torch.no_grad()(f), (X,), (X,)),
    "forward AD": dual,
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_are_refused(network: OptimizedHiFuse, name: str) -> None:
    network(X)
    with pytest.raises(RuntimeError, match=r"called under .*(torch\.func|forward_ad).*use the model that it was made of"):
        TRANSFORMS[name](network)


def test_images_that_require_a_gradient(network: OptimizedHiFuse) -> None:
    wanted = X.clone().requires_grad_()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"images require a gradient, .* use the model that .*; .* torch\.no_grad\(\)"):
            network(wanted)
    with torch.no_grad():
        result = network(wanted)
    assert torch.equal(result, network(X))
    assert not result.requires_grad


def test_sparse_and_nested_images(network: OptimizedHiFuse, model: Any) -> None:
    nested = [torch.nested.nested_tensor([X[0], X[0]], layout=layout) for layout in (torch.strided, torch.jagged)]
    for each in (network, model):
        with pytest.raises(TypeError, match=r"images must be a dense tensor, got torch\.sparse_coo: call to_dense\(\) first"):
            each(X.to_sparse())
        for images in nested:
            with pytest.raises(TypeError, match="images must be one dense tensor, got a nested one"):
                each(images)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_jit(network: OptimizedHiFuse, model: Any) -> None:
    instead = r"torch\.export\.export takes it, .* load_optimized"
    with pytest.raises(RuntimeError, match=rf"torch\.jit\.trace cannot take a frozen network: {instead}"):
        torch.jit.trace(network, X)
    for each in (network, nn.Sequential(network)):
        with pytest.raises(RuntimeError, match=rf"torch\.jit\.script cannot take a frozen network: {instead}"):
            torch.jit.script(each)
    with pytest.raises(
        RuntimeError, match=r"torch\.jit\.script cannot take HiFuse: torch\.export\.export and torch\.compile do"
    ):
        torch.jit.script(model)


# ---- Edited --------------------------------------------------------------------------------------------------------------


class Doubled(nn.Module):
    """As the op, with a result twice as large; it pays no heed to where that should go."""

    def __init__(self, op: nn.Module) -> None:
        super().__init__()
        self.op = op

    def forward(self, *args: Any, out: Any = None, **named: Any) -> Any:
        return 2 * self.op(*args, **named)


def double_head(network: Any) -> None:
    network.head = Doubled(network.head)


def double_block(network: Any) -> None:
    network.stages[0].local_blocks[1] = Doubled(network.stages[0].local_blocks[1])


def keep_input(network: Any) -> None:
    network.stages[2].fusion.mixer.forward = lambda z, out=None: z


def hook(network: Any) -> None:
    network.stages[1].fusion.mixer.register_forward_hook(lambda _module, _args, result: 2 * result)


def pre_hook(network: Any) -> None:
    network.stages[1].global_blocks[0].register_forward_pre_hook(lambda _module, args: (2 * args[0], args[1]))


EDITS = [double_head, double_block, keep_input, hook, pre_hook]


@pytest.mark.parametrize("edit", EDITS)
def test_edits_count_from_the_next_call_on(network: OptimizedHiFuse, edit: Any, tmp_path: Path) -> None:
    edited, fresh = copy.deepcopy(network), copy.deepcopy(network)
    before = network(X)
    for _ in range(2):
        assert torch.equal(edited(X), before)  # on a tape by now
    edit(edited)
    edit(fresh)
    expected = fresh(X)
    assert not torch.equal(expected, before)
    assert torch.equal(edited(X), expected)
    assert torch.equal(edited(X), expected)
    with pytest.raises(ValueError, match="cannot be saved, because a module of it was replaced or has a hook"):
        edited.save(tmp_path / "network.safetensors")
    assert torch.equal(network(X), before)
    if edit is double_head:
        assert torch.equal(expected, 2 * before)


def test_a_hook_that_was_removed_leaves_nothing(network: OptimizedHiFuse) -> None:
    before, seen = network(X), []
    handles = [
        network.stages[0].fusion.register_forward_hook(lambda *_: seen.append("fusion")),
        nn.modules.module.register_module_forward_hook(lambda *_: seen.append("all")),
    ]
    try:
        assert torch.equal(network(X), before)
    finally:
        for handle in handles:
            handle.remove()
    assert {"fusion", "all"} == set(seen)
    count = len(seen)
    assert torch.equal(network(X), before)
    assert len(seen) == count


def test_a_tensor_of_an_op_is_written_not_replaced(network: OptimizedHiFuse) -> None:
    edited = copy.deepcopy(network)
    before = edited(X)
    with pytest.raises(AttributeError, match="a prepared op keeps its tensors, and bias is one: write into it"):
        edited.stages[0].fusion.path.fuse.bias = torch.zeros(8)
    bias = edited.stages[3].fusion.path.fuse.bias
    bias.add_(1)
    assert not torch.equal(edited(X), before)


def test_copies_are_as_they_were_made(network: OptimizedHiFuse) -> None:
    for each in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), copy.copy(network)):
        assert not each._watch.sees_a_change()
        assert torch.equal(each(X), network(X))


@pytest.mark.parametrize("edit", EDITS)
def test_copies_see_their_own_edits_and_those_before(network: OptimizedHiFuse, edit: Any) -> None:
    edited = copy.deepcopy(network)
    edit(edited)
    before = copy.deepcopy(edited)
    assert edited._watch.sees_a_change()
    assert before._watch.sees_a_change()
    assert not network._watch.sees_a_change()


# ---- Conversions and contexts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_conversion_to_what_it_is(model: Any, dtype: torch.dtype, backend: str) -> None:
    network = optimize_for_inference(model, dtype, backend=backend)
    expected = network(X)
    same = network.bfloat16 if dtype == torch.bfloat16 else network.float
    for change in (
        same,
        lambda: network.to(dtype),
        lambda: network.to("cpu", dtype),
        network.cpu,
        lambda: network.to(X.to(dtype)),
    ):
        assert change() is network
        assert torch.equal(network(X), expected)
    for change in (network.half, network.double, lambda: network.to("meta"), lambda: network.to("meta", dtype)):
        with pytest.raises(TypeError, match="a prepared op keeps its dtype, device and layout"):
            change()
    assert torch.equal(nn.Sequential(network).to(dtype)(X), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_a_device_context(model: Any, backend: str, tmp_path: Path) -> None:
    expected = optimize_for_inference(model, backend=backend)(X)
    with torch.device("meta"):
        network = optimize_for_inference(model, backend=backend)
        network.save(tmp_path / "network.safetensors")
        loaded = load_optimized(tmp_path / "network.safetensors")
        results: list[Tensor] = [each(X) for each in (network, loaded, network, loaded)]
        padded = network(X[..., :40, :33])
    assert all(torch.equal(each, expected) for each in results)
    assert torch.equal(padded, network(X[..., :40, :33]))
