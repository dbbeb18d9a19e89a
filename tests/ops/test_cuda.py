"""The CUDA kernels of small calls of all ops: the same bits in all orders and landings, and for an image in any batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.calls import FUNCTIONS, PREPARED, Call
from tests.support.emulation import check_runs
from tests.support.kernels import kernels, uniform
from tests.support.prepared import place

pytestmark = pytest.mark.gpu
FUNCTION_OPS = {call.op for call in FUNCTIONS.values()}
CALLS = [
    pytest.param(call, marks=[mark for kernel in kernels(call.op, "cuda") for mark in kernel.marks], id=name)
    for name, call in (FUNCTIONS | PREPARED).items()
    if "cuda" in call.kernels
]


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_all_runs_give_the_same_bits(call: Call) -> None:
    tensors = place("cuda", {**call.maps, **call.weights}, torch.bfloat16)
    names = [name for name in tensors if not name.startswith("running")]

    def run() -> list[Tensor]:
        leaves = {name: x.clone().requires_grad_(name in names and call.op in FUNCTION_OPS) for name, x in tensors.items()}
        results = call.outputs("cuda", leaves)
        if call.op not in FUNCTION_OPS:
            return results
        grad = uniform("grad", *results[0].shape).to(results[0])
        grads = torch.autograd.grad(results[0], [leaves[name] for name in names], grad)
        return [results[0].detach(), *grads]

    check_runs(run)


@pytest.mark.parametrize("call", [each for each in CALLS if each.values[0].images_apart])
def test_an_image_has_the_same_bits_in_any_batch(call: Call) -> None:
    """Alone, and with others before and behind it."""
    if call.op == "prepare_stem":
        pytest.skip("its product is the vendor's")
    weights, maps = (place("cuda", tensors, torch.bfloat16) for tensors in (call.weights, call.maps))
    together = call.outputs("cuda", {**maps, **weights})
    alone = call.outputs("cuda", {**{name: x[2:3] for name, x in maps.items()}, **weights})
    assert all(torch.equal(a[2:3], b) for a, b in zip(together, alone, strict=True))
