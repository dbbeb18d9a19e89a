"""One graph that torch.compile made for dynamic sizes serves images of every size, in value and in gradients."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from hifuse_fast import HiFuse
from tests.support.modules import narrow, some_images

pytestmark = pytest.mark.slow  # a minute of tracing each
SIZES = [(2, 72, 104), (3, 64, 40), (2, 224, 100)]


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def results(model: HiFuse, images: Tensor, call: object = None) -> list[Tensor]:
    """Logits; in training the gradients and the statistics after the step too."""
    model.zero_grad()
    with torch.set_grad_enabled(model.training):
        out = (model if call is None else call)(images)  # type: ignore[operator]
    if not model.training:
        return [out]
    out.square().sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [out.detach(), *grads, *(b.clone() for b in model.buffers())]


def graphs(model: HiFuse, sizes: list[tuple[int, int, int]], compiler: str = "aot_eager") -> int:
    """How many graphs serve the sizes; each result is what the model gives that is not compiled."""
    eager, counter = copy.deepcopy(model), CompileCounterWithBackend(compiler)
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend=counter)
    for size in sizes:
        images = some_images(*size)
        for found, expected in zip(results(model, images, compiled), results(eager, images), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    return counter.frame_count


@pytest.mark.parametrize("training", [False, True])
def test_one_graph(training: bool) -> None:
    assert graphs(narrow().train(training), SIZES) == 1


def test_one_graph_with_checkpointing() -> None:
    model = narrow().train()
    model.set_grad_checkpointing()
    assert graphs(model, SIZES[:2]) == 1


def test_one_exported_program() -> None:
    """It serves any batch and size above 32. Sides of 100 are whole windows of 4 in each stage, those of 96 and 224 in two."""
    model, dim = narrow(window_size=4), torch.export.Dim.AUTO
    shapes = ({0: dim, 2: dim, 3: dim},)
    with torch.no_grad():
        program = torch.export.export(model, (some_images(2, 72, 104),), dynamic_shapes=shapes).module()
        for size in [(2, 72, 104), (3, 64, 40), (2, 224, 100), (4, 100, 224), (5, 96, 224), (2, 300, 33), (17, 70, 64)]:
            torch.testing.assert_close(program(some_images(*size)), model(some_images(*size)), rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("training", [False, True])
def test_one_graph_of_inductor(training: bool) -> None:
    """PyTorch's own compiler writes C++ for every size."""
    assert graphs(narrow(depths=(1, 1, 1, 1), conv_depths=(1, 1, 1, 1)).train(training), SIZES, "inductor") == 1
