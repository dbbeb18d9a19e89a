"""Prepared ops with dynamic sizes: one graph of torch.compile, one exported program, and the numbers of a plain call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from tests.support.calls import PREPARED, Call
from tests.support.kernels import kernels

pytestmark = [pytest.mark.gpu, pytest.mark.slow]  # each traces for a second

# Of batch, height and width. In the first call no two sizes of a map are equal: PyTorch would take them for one size.
REPEATS = [(1, 2, 3), (2, 3, 1), (3, 1, 2)]


class Called(nn.Module):
    """The op as a function of its maps alone, of which the last may be a residual."""

    def __init__(self, op: nn.Module, residual: bool) -> None:
        super().__init__()
        self.op, self.residual = op, residual

    def forward(self, *maps: Tensor) -> Any:
        return self.op(*maps[:-1], residual=maps[-1]) if self.residual else self.op(*maps)


def made(call: Call, backend: str) -> tuple[Called, list[tuple[Tensor, ...]]]:
    """The op, and the maps of calls of several sizes."""
    assert call.make is not None
    tensors = {name: tensor.float().cpu() for name, tensor in (call.maps | call.weights).items()}
    first = 2 if call.op == "prepare_stem" else 1  # images are channels first
    calls = [
        tuple(tensors[name].repeat(batch, *[1] * (first - 1), height, width, *[1] * (2 - first)) for name in call.maps)
        for batch, height, width in REPEATS
    ]
    return Called(call.make(backend, tensors), "residual" in call.maps), calls


def assert_same(found: Any, expected: Any) -> None:
    for a, e in zip(*([x] if isinstance(x, Tensor) else x for x in (found, expected)), strict=True):
        torch.testing.assert_close(a, e)


CASES = [
    pytest.param(name, *each.values, marks=each.marks, id=f"{name}-{each.values[0]}")
    for name, call in PREPARED.items()
    for each in [*kernels(call.op, "native"), *[pytest.param("reference")] * (len(call.kernels) > 1)]
]


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_one_graph(name: str, backend: str) -> None:
    torch._dynamo.reset()
    op, calls = made(PREPARED[name], backend)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(op, dynamic=True, fullgraph=True, backend=counter)
    traced = []  # after each call: the first is traced again where PyTorch finds that a number, as eps, is a constant
    for maps in calls:
        assert_same(compiled(*maps), op(*maps))
        traced.append(counter.frame_count)
    assert traced in ([1, 1, 1], [2, 2, 2])


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_one_program(name: str, backend: str) -> None:
    op, calls = made(PREPARED[name], backend)
    axes, dim = (0, 2, 3) if PREPARED[name].op == "prepare_stem" else (0, 1, 2), torch.export.Dim.AUTO
    program = torch.export.export(op, calls[0], dynamic_shapes=((dict.fromkeys(axes, dim),) * len(calls[0]),)).module()
    for maps in calls:
        assert_same(program(*maps), op(*maps))
