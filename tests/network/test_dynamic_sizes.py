"""One graph that torch.compile made for dynamic sizes serves images of every size, in value and in gradients."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from hifuse_fast.backends.tracing import trace_for_every_size
from hifuse_fast.blocks import GlobalBlock, HFFBlock, LocalBlock, PatchMerging
from hifuse_fast.ops.functions.padding import pad_to_multiple
from tests.support.modules import narrow, some_images

pytestmark = pytest.mark.slow  # a minute of tracing each
needs_compiler = pytest.mark.skipif(
    shutil.which("c++") is None and shutil.which("g++") is None, reason="there is no C++ compiler"
)
SIZES = [(2, 72, 104), (3, 64, 40), (2, 224, 100)]


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def results(model: nn.Module, images: Tensor, call: object = None) -> list[Tensor]:
    """Logits; in training the gradients and the statistics after the step too."""
    model.zero_grad()
    with torch.set_grad_enabled(model.training):
        out = (model if call is None else call)(images)  # type: ignore[operator]
    if not model.training:
        return [out]
    out.square().sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [out.detach(), *grads, *(b.clone() for b in model.buffers())]


def graphs(
    model: nn.Module, sizes: list[tuple[int, int, int]], compiler: str = "aot_eager", channels: int = 3, error: float = 1e-9
) -> int:
    """How many graphs serve the sizes; each result is what the model gives that is not compiled."""
    eager, counter = copy.deepcopy(model), CompileCounterWithBackend(compiler)
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend=counter)
    for batch, height, width in sizes:
        images = some_images(batch * channels, height, width)[:, 0].reshape(batch, channels, height, width)
        images = images.to(next(model.parameters()).dtype)
        for found, expected in zip(results(model, images, compiled), results(eager, images), strict=True):
            torch.testing.assert_close(found, expected, rtol=error, atol=error)
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


@needs_compiler
def test_one_graph_of_inductor() -> None:
    """PyTorch's own compiler writes C++ for every size."""
    assert graphs(narrow(depths=(1, 1, 1, 1), conv_depths=(1, 1, 1, 1)), SIZES, "inductor") == 1


class OneStage(nn.Module):
    """A block of each kind. The whole network takes Inductor too long to be a test."""

    def __init__(self) -> None:
        super().__init__()
        self.merge, self.local, self.fuse = PatchMerging(8), LocalBlock(16), HFFBlock(16, 8)
        self.attend = GlobalBlock(16, 2, window_size=4, shift_size=2)

    def forward(self, images: Tensor) -> Tensor:
        trace_for_every_size(images)
        x = pad_to_multiple(images.permute(0, 2, 3, 1), 8)
        merged = self.merge(x)
        out: Tensor = self.fuse(self.local(merged), self.attend(merged), x)
        return out.mean((1, 2))


@needs_compiler
def test_one_graph_of_inductor_in_training() -> None:
    """In float32: in float64 PyTorch's convolution on a CPU gives other strides than Inductor was told, which is an error."""
    torch.manual_seed(0)
    assert graphs(OneStage().train(), [(2, 14, 20), (3, 9, 11), (2, 33, 18)], "inductor", channels=8, error=1e-4) == 1
