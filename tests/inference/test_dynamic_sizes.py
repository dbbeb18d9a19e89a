"""The frozen network with dynamic sizes, on every backend: one graph of torch.compile, and one exported program."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from hifuse_fast import OptimizedHiFuse, optimize_for_inference
from tests.support.frozen import image, narrow
from tests.support.kernels import device_of, kernels

pytestmark = [pytest.mark.gpu, pytest.mark.slow]  # each traces for many seconds
BACKENDS = [*kernels("prepare_linear", "native", "cuda"), "reference"]
SIZES = [(3, 72, 104), (4, 300, 40), (5, 33, 64), (17, 64, 40)]  # PyTorch takes a batch of 2 for the 2 channels


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def frozen(backend: str) -> OptimizedHiFuse:
    model = narrow(depths=(1, 1, 1, 1)).float().to(device_of(backend))
    return optimize_for_inference(model, backend=backend, cuda_graphs=False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_graph_also_after_calls_that_are_not_compiled(backend: str) -> None:
    network, counter = frozen(backend), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(network, fullgraph=True, dynamic=True, backend=counter)
    with torch.no_grad():
        for size in SIZES:
            x = image(*size, torch.float32).to(network.device)
            torch.testing.assert_close(compiled(x), network(x), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_program(backend: str) -> None:
    network, dim = frozen(backend), torch.export.Dim.AUTO
    first = image(*SIZES[0], torch.float32).to(network.device)
    program = torch.export.export(network, (first,), dynamic_shapes=({0: dim, 2: dim, 3: dim},)).module()
    for size in SIZES:
        x = image(*size, torch.float32).to(network.device)
        torch.testing.assert_close(program(x), network(x), rtol=1e-5, atol=1e-5)
