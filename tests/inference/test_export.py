"""The natively frozen network under torch.export and torch.compile: bit for bit what it gives without."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hifuse_fast import OptimizedHiFuse, optimize_for_inference
from hifuse_fast.backends.native import library
from hifuse_fast.inference.buffers import is_traced
from tests.support.frozen import VARIANTS, image, narrow

pytestmark = pytest.mark.skipif(library.lib is None, reason=str(library.why_missing))
X = image(2, 64, 96, torch.float32)


def frozen(dtype: torch.dtype = torch.float32, **options: Any) -> OptimizedHiFuse:
    return optimize_for_inference(narrow(**options).float(), dtype, backend="native")


def assert_same(actual: Any, expected: Any) -> None:
    for a, e in zip(*([x] if isinstance(x, Tensor) else x for x in (actual, expected)), strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        pytest.param(torch.float32, {}, marks=pytest.mark.slow),  # the tests below export it
        pytest.param(
            torch.bfloat16,
            {**VARIANTS["depthwise"], **VARIANTS["no qkv bias"], **VARIANTS["no classifier"]},
            marks=pytest.mark.slow,
        ),
        pytest.param(torch.float32, {"features_only": True, "out_indices": (0, 2)}, marks=pytest.mark.slow),
    ],
    ids=["float32", "bfloat16, other options", "maps"],
)
def test_export(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """The program, its decompositions, and the program out of a file give the same numbers."""
    network = frozen(dtype, **options)
    expected = network(X)
    program = torch.export.export(network, (X,))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    mean = network.head is not None
    assert sum(name.startswith("hifuse_fast.") for name in called) == len(network._made) + mean
    assert not [name for name in called if "wrap_with" in name]  # one flat graph
    assert_same(program.module()(X), expected)
    functional = program.run_decompositions()
    assert_same(functional.module()(X), expected)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    assert_same(torch.export.load(file).module()(X), expected)
    assert_same(network(X), expected)


def test_export_of_any_batch() -> None:
    network = frozen()
    program = torch.export.export(network, (X,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    for batch in (1, 3, 5):
        x = image(batch, 64, 96, torch.float32)
        assert torch.equal(program.module()(x), network(x))
    assert torch.equal(program.run_decompositions().module()(X), network(X))


def test_export_of_a_size_that_is_padded_and_of_a_network_that_was_called() -> None:
    network, x = frozen(), image(1, 40, 70, torch.float32)
    for _ in range(2):  # on a tape by now
        expected = network(x)
    program = torch.export.export(network, (x,), strict=True)
    assert torch.equal(program.module()(x), expected)
    assert torch.equal(network(x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's own
@pytest.mark.parametrize("options", [{}, pytest.param({"features_only": True}, marks=pytest.mark.slow)])
def test_compile_in_one_graph(options: dict[str, Any]) -> None:
    network = frozen(depths=(1, 1, 1, 1), **options)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    assert_same(compiled(X), network(X))


@pytest.mark.slow  # a batch of 1 is a graph of its own, and the second size is one with symbols
def test_compile_for_several_batches() -> None:
    network = frozen()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 1):
        x = image(batch, 64, 96, torch.float32)
        assert_same(compiled(x), network(x))


def test_fake_images_leave_nothing_behind() -> None:
    """No map of a fake tensor is lent to the next call, and no tape is kept of what did not run."""
    network = frozen()
    expected = frozen()(X)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        out = network(mode.from_tensor(X))
        assert out.shape == expected.shape
        network(mode.from_tensor(X))
    assert network._pool._idle == {}
    assert torch.equal(network(X), expected)
    assert torch.equal(network(X), expected)


def test_who_is_traced() -> None:
    class Named(torch.Tensor):
        """As torchvision's images: plain to the dispatcher."""

    with FakeTensorMode() as mode:
        assert is_traced(X)
        fake = mode.from_tensor(X)
    assert is_traced(fake)
    assert not any(is_traced(x) for x in (X, torch.nn.Parameter(X), X.as_subclass(Named)))


def test_under_autocast() -> None:
    network = frozen()
    with torch.autocast("cpu", torch.bfloat16):
        program = torch.export.export(network, (X,))
        assert torch.equal(program.module()(X), network(X))
    assert torch.equal(program.module()(X), network(X))
