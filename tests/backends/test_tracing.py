"""What torch.compile is told: floats are constants, no size is asked for, and PyTorch's settings are as before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import config
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import config as inductor
from torch.fx.experimental import _config as symbols

from hifuse_fast.backends.tracing import trace_for_every_size
from hifuse_fast.layers import Conv2d


class Plus(nn.Module):
    eps = 0.5

    def forward(self, x: Tensor) -> Tensor:
        trace_for_every_size(x)
        return x + self.eps


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_float_is_no_input_of_the_graph_and_a_new_one_is_compiled() -> None:
    model, counter = Plus(), CompileCounterWithBackend("eager")
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend=counter)
    x = torch.ones(3)
    assert torch.equal(compiled(x), x + 0.5)
    names = [node.name for node in counter.graphs[0].graph.nodes if node.op == "placeholder"]
    assert not [name for name in names if "eps" in name]
    assert not config.specialize_float
    assert not symbols.backed_size_oblivious
    model.eps = 0.25
    assert torch.equal(compiled(x), x + 0.25)
    assert counter.frame_count == 2


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = Conv2d(5, 7, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        trace_for_every_size(x)
        out: Tensor = self.conv(x)[:, ::2].mul(2)
        return out


def test_a_compiled_transform_sees_through_convolutions() -> None:
    model, x = Convolved(), torch.randn(3, 8, 9, 5)

    def tangent(x: Tensor) -> Tensor:
        found: Tensor = torch.func.jvp(model, (x,), (x.cos(),))[1]
        return found

    compiled = torch.compile(tangent, dynamic=True, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), tangent(x))


@pytest.mark.parametrize("training", [False, True])
def test_sides_of_one_and_batches_of_many_are_served_by_one_graph(training: bool) -> None:
    """With gradients, where PyTorch's settings stay as they are, by several."""
    model, counter = Convolved(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend=counter)
    for size in [(2, 8, 9), (20, 3, 4), (3, 1, 6), (4, 7, 1), (1, 90, 90), (1, 1, 1)]:
        x = torch.randn(*size, 5, requires_grad=training)
        with torch.set_grad_enabled(training):
            found, expected = compiled(x), model(x)
        torch.testing.assert_close(found, expected)
        wanted = (x, *model.parameters())
        if training:
            for a, e in zip(*(torch.autograd.grad(y.square().sum(), wanted) for y in (found, expected)), strict=True):
                torch.testing.assert_close(a, e)
    assert counter.frame_count == (5 if training else 1)


def test_the_setting_is_as_before_where_compiling_fails_or_the_graph_breaks() -> None:
    class Broken(Plus):
        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)
            torch._dynamo.graph_break()
            return x + self.eps

    x = torch.ones(3)
    with pytest.raises(Exception, match="graph_break"):
        torch.compile(Broken(), dynamic=True, fullgraph=True, backend="eager")(x)
    assert not config.specialize_float
    assert not symbols.backed_size_oblivious
    assert torch.equal(torch.compile(Broken(), dynamic=True, backend="eager")(x), x + 1)
    assert not config.specialize_float


@pytest.mark.parametrize("chosen", [True, False])
def test_what_the_user_set_stays(chosen: bool) -> None:
    with config.patch(specialize_float=chosen), symbols.patch(backed_size_oblivious=chosen):
        for _ in range(2):
            torch._dynamo.reset()
            torch.compile(Plus(), dynamic=True, backend="eager")(torch.ones(3))
            assert config.specialize_float is chosen
            assert symbols.backed_size_oblivious is chosen


@pytest.mark.parametrize(("gradients", "dynamic"), [(True, True), (True, False), (False, True)])
def test_inductor_leaves_layouts_only_with_gradients_and_dynamic_sizes(gradients: bool, dynamic: bool) -> None:
    """On a CPU, with dynamic sizes, it fails where it orders the maps that a backward needs."""
    seen = []

    def look(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        seen.append(inductor.layout_optimization)
        return graph

    before = inductor.layout_optimization
    with torch.set_grad_enabled(gradients), inductor.patch(layout_optimization=True):
        torch.compile(Plus(), dynamic=dynamic, fullgraph=True, backend=look)(torch.ones(3, 5))
        assert inductor.layout_optimization
    assert seen == [not (gradients and dynamic)]
    assert inductor.layout_optimization is before
