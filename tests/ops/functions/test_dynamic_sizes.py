"""Code that torch.compile made for dynamic sizes serves maps of every size."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.source import ConstantSource
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from hifuse_fast import ops, use_backend
from hifuse_fast.backends import tables
from hifuse_fast.backends.native import library as native
from hifuse_fast.backends.tracing import trace_for_every_size
from hifuse_fast.blocks import GlobalBlock, HFFBlock, LocalBlock, PatchMerging, WindowAttention
from hifuse_fast.layers import LayerNorm
from hifuse_fast.ops.functions.padding import pad_to_multiple
from tests.support.calls import FUNCTIONS, Call
from tests.support.kernels import device_of, kernels
from tests.support.modules import assert_same

pytestmark = pytest.mark.gpu
SIZES = [(2, 5, 9), (3, 14, 21), (2, 33, 12), (4, 7, 8), (5, 28, 50)]  # batch, height, width


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class EveryOp(nn.Module):
    """Blocks that call each of the functions, [B, H, W, 16] -> [B, ceil(H / 2), ceil(W / 2), 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.local = LocalBlock(16)
        self.norm = LayerNorm(16)
        self.attend = GlobalBlock(16, 2, window_size=4, shift_size=2)
        self.merge = PatchMerging(16, 16)
        self.fuse = HFFBlock(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_multiple(x, 2)
        local_map = self.norm(self.local(x))[:, ::2, ::2]
        out: Tensor = self.fuse(local_map, self.merge(self.attend(x)), x)
        return out


@pytest.mark.slow  # traces for seconds
def test_blocks() -> None:
    torch.manual_seed(0)
    model, counter = EveryOp().double().eval(), CompileCounter()
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend=counter)
    with torch.no_grad():
        for size in SIZES:
            x = torch.randn(*size, 16, dtype=torch.float64)
            torch.testing.assert_close(compiled(x), model(x))
    assert counter.frame_count == 1


class OfEverySize(EveryOp):
    def forward(self, x: Tensor) -> Tensor:
        trace_for_every_size(x)
        return super().forward(x)


@pytest.mark.slow  # traces for seconds
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("training", [False, True])
def test_one_graph_for_every_batch_and_side(training: bool, backend: str) -> None:
    """In float32 PyTorch's convolutions ask for a batch of 16; strides, for sides of 1, and for windows of which there is 1."""
    torch.manual_seed(0)
    model, counter = OfEverySize().train(training), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend=counter)
    sizes = [(2, 18, 28), (17, 9, 10), (3, 8, 12), (4, 3, 5), (1, 20, 10), (1, 200, 100)][: 2 if training else None]
    sides_of_one = [] if training else [(3, 8, 1), (5, 1, 9), (6, 1, 1)]
    for size in sizes + sides_of_one:
        x, state, found = torch.randn(*size, 16), copy.deepcopy(model.state_dict()), []
        for call in (compiled, model):
            model.load_state_dict(state)
            model.zero_grad()
            with torch.set_grad_enabled(training), use_backend(backend):
                out = call(x)
            if training:
                out.square().sum().backward()
            grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            found.append([out.detach(), *grads, *(b.clone() for b in model.buffers())])
        assert_same(*found, tolerance=1e-4)
    assert counter.frame_count <= (3 if backend == "reference" and not training else 1)  # of the reference, for sides of 1


@pytest.mark.slow  # traces for seconds
@pytest.mark.parametrize("kernel", kernels("window_attention", "native", "cuda"))
def test_attention_and_its_gradients_of_several_sizes(kernel: str) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ops.window_attention, dynamic=True, fullgraph=True, backend=counter)
    for batch, height, width in [(3, 5, 9), (4, 14, 7), (5, 8, 12)]:
        table = torch.randn(49, 2, device=device_of(kernel), requires_grad=True)
        qkv = torch.randn(batch, height, width, 48, device=table.device, requires_grad=True)
        found, expected = (
            call(qkv, table, num_heads=2, window_size=4, shift_size=1, backend=backend)
            for call, backend in ((compiled, kernel), (ops.window_attention, "reference"))
        )
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        for a, e in zip(*(torch.autograd.grad(y.sin().sum(), (qkv, table)) for y in (found, expected)), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-3)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_attention_that_drops_weights(rate: float) -> None:
    """In training its rate is a float of a module, which torch.compile takes for a symbol."""
    block, counter = WindowAttention(16, 2, window_size=4, attn_drop=rate).double().train(), CompileCounter()
    compiled = torch.compile(block, dynamic=True, fullgraph=True, backend=counter)
    with use_backend("reference"):
        for size in SIZES[:2]:
            x = torch.randn(*size, 16, dtype=torch.float64)
            assert compiled(x).shape == x.shape
            if not rate:
                torch.testing.assert_close(compiled(x), block(x))
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, backend) for name, call in FUNCTIONS.items() for backend in call.kernels if backend != "native"],
)
def test_what_launchers_ask_binds_no_size(name: str, backend: str) -> None:
    """Tiles and scratch are chosen by the size of a map, at each call. A fake asks for them too."""
    if backend == "triton":
        pytest.importorskip("triton")
    call, env = FUNCTIONS[name], ShapeEnv()
    with FakeTensorMode(shape_env=env, allow_non_fake_inputs=True), tables.assume("sm_90"):
        tensors = _symbolic(call, env)
        (out,) = call.outputs(backend, tensors)
        wanted = [t for t in tensors.values() if t.requires_grad]
        grads = torch.autograd.grad(out.float().sum(), wanted, allow_unused=True)
    for grad, tensor in zip(grads, wanted, strict=True):
        assert grad is None or grad.shape == tensor.shape
    assert env.backed_var_to_val
    for factor in (2, 4, 14, 100):  # even, for pooling
        other = {symbol: hint * factor for symbol, hint in env.backed_var_to_val.items()}
        assert [guard.expr for guard in env.guards if not guard.expr.xreplace(other)] == []


def _symbolic(call: Call, env: ShapeEnv) -> dict[str, Tensor]:
    """Tensors as those of a call, on the meta device. H and W of its maps are symbols, one for each size."""

    def symbol(size: int) -> Any:
        source = ConstantSource(f"size_{size}")
        made = env.create_symbol(size, source=source, dynamic_dim=DimDynamic.DUCK, constraint_dim=None)
        return env.create_symintnode(made, hint=size, source=source)

    found = {}
    for name, tensor in (call.maps | call.weights).items():
        batch, *sizes = tensor.shape
        if name in call.maps and tensor.dim() == 4:
            sizes = [size if size == 1 else symbol(size) for size in sizes[:2]] + sizes[2:]
        wanted = "running" not in name
        found[name] = torch.empty((batch, *sizes), device="meta", dtype=torch.bfloat16, requires_grad=wanted)
    return found


@pytest.mark.parametrize("kernel", kernels("mixer", "native"))
def test_the_ways_of_the_native_ops_are_chosen_at_each_call(kernel: str) -> None:
    """They depend on the number of pixels, to which no graph is bound."""
    weights = [torch.randn(12, 12, 3, 3), torch.randn(20, 12), torch.randn(12, 20)]
    counter = CompileCounter()

    def chain(z: Tensor, weight: Tensor, expand: Tensor, project: Tensor) -> Tensor:
        return ops.mlp(ops.mixer(z, weight, backend=kernel), expand, project, backend=kernel)

    compiled = torch.compile(chain, dynamic=True, fullgraph=True, backend=counter)
    for size in [(2, 5, 7), (3, 40, 30), (2, 33, 50)]:
        z = torch.randn(*size, 12)
        torch.testing.assert_close(compiled(z, *weights), chain(z, *weights))
    assert counter.frame_count == 1


def test_padding_to_whole_strides_leaves_no_parity_to_ask_for() -> None:
    counter = CompileCounter()

    def halve(x: Tensor) -> Tensor:
        x = pad_to_multiple(x, 8)
        for _ in range(3):
            x = pad_to_multiple(x, 2)[:, ::2, ::2]
        return x

    compiled = torch.compile(halve, dynamic=True, fullgraph=True, backend=counter)
    for size in [(33, 64), (224, 224), (97, 131), (30, 65), (40, 50)]:
        x = torch.randn(1, *size, 3)
        torch.testing.assert_close(compiled(x), halve(x))
    assert counter.frame_count == 1


def test_a_map_that_needs_no_padding_is_not_copied() -> None:
    x = torch.randn(1, 4, 8, 3)
    assert pad_to_multiple(x, 4) is x
    graphs = []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch.compile(lambda x: pad_to_multiple(x, 4) + 1, dynamic=False, fullgraph=True, backend=keep)(x)
    assert [node for node in graphs[0].graph.nodes if "pad" in str(node.target)] == []


@pytest.mark.parametrize("bias", [False, True])
def test_an_exported_attention_serves_maps_with_and_without_padding(bias: bool) -> None:
    """Of several windows a side. Whether the crop takes the whole map, the program may not ask; of one window it would."""

    class Attend(nn.Module):
        def forward(self, qkv: Tensor, table: Tensor, qkv_bias: Tensor | None) -> Tensor:
            return ops.window_attention(
                qkv, table, num_heads=2, window_size=7, shift_size=3, qkv_bias=qkv_bias, backend="reference"
            )

    dim, weights = torch.export.Dim.AUTO, (torch.randn(169, 2), torch.randn(24) if bias else None)
    shapes = ({0: dim, 1: dim, 2: dim}, None, None)
    program = torch.export.export(Attend(), (torch.randn(2, 12, 18, 24), *weights), dynamic_shapes=shapes).module()
    for size in [(2, 12, 18), (3, 14, 21), (2, 14, 12), (4, 12, 14), (2, 33, 8)]:
        qkv = torch.randn(*size, 24)
        torch.testing.assert_close(program(qkv, *weights), Attend()(qkv, *weights))


@pytest.mark.skipif(native.lib is None, reason=str(native.why_missing))
@pytest.mark.parametrize("name", ["mixer", "mlp"])
@pytest.mark.parametrize("keep", [False, True])
def test_the_shapes_of_a_native_op_are_those_of_its_results(name: str, keep: bool) -> None:
    module = importlib.import_module(f"hifuse_fast.ops.functions.{name}.native")
    weights = {"mixer": [torch.randn(6, 6, 3, 3)], "mlp": [torch.randn(9, 6), torch.randn(5, 9)]}[name]
    for x in (torch.randn(2, 3, 5, 6), torch.randn(2, 5, 3, 6).transpose(1, 2)):
        found, expected = (call(x, *weights, keep=keep) for call in (module.shapes, module.forward))
        for a, e in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
            assert (a.shape, a.stride(), a.dtype) == (e.shape, e.stride(), e.dtype)
