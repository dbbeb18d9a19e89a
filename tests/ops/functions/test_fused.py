"""The one mechanism that makes functions of kernels: transforms, higher derivatives, tracing, counters; for every op alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from hifuse_fast import BackendError, ops, use_backend
from hifuse_fast.backends.select import OPS, kernels_on
from tests.support.kernels import DEVICE, device_of, kernels, uniform

pytestmark = pytest.mark.gpu

Call = Callable[..., Tensor]
C = 6


def concat(x: Tensor, y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, **named: Any) -> Tensor:
    return ops.concat_norm(x, y, weight=weight, bias=bias, gates=[gate, None], **named)


def scale_and_shift(width: int) -> dict[str, Tensor]:
    return {"weight": uniform("weight", width) + 2, "bias": uniform("bias", width)}


def examples() -> dict[str, tuple[Call, dict[str, Tensor]]]:
    """A call of each op with everything on that it has, and its tensors by name."""
    x = {"x": uniform("x", 1, 4, 2, C)}
    attend = partial(ops.window_attention, num_heads=1, window_size=3, shift_size=1, scale=0.7)
    tables = {"bias_table": uniform("table", 25, 1), "qkv_bias": uniform("qkv_bias", 24)}
    filters = {"filters": uniform("filters", C, 1, 3, 3), "filter_bias": uniform("filter_bias", C)}
    normalise = partial(ops.batch_norm, training=True, activation="gelu", pool=True)
    gated = {"y": uniform("y", 1, 4, 2, C), "gate": uniform("gate", 1, 4, 2, 1)}
    norms = {f"norm_{name}": t for name, t in scale_and_shift(C).items()}
    product = {"weight": uniform("matrix", 4, C), "bias": uniform("vector", 4), "residual": uniform("r", 1, 4, 2, 4)}
    return {
        "window_attention": (attend, {"qkv": uniform("qkv", 1, 4, 2, 24), **tables}),
        "layer_norm": (partial(ops.layer_norm, rows="patches"), x | scale_and_shift(4 * C)),
        "depthwise_norm": (ops.depthwise_norm, x | filters | scale_and_shift(C)),
        "batch_norm": (normalise, x | scale_and_shift(C) | {"residual": uniform("residual", 1, 2, 1, C)}),
        "max_mean": (partial(ops.max_mean, over="channels"), x),
        "concat_norm": (concat, x | gated | scale_and_shift(2 * C)),
        "linear": (partial(ops.linear, activation="gelu"), x | product | norms),
        "mixer": (ops.mixer, {"z": x["x"], "weight": uniform("dense", C, C, 3, 3)}),
        "mlp": (
            ops.mlp,
            {"u": x["x"], "expand_weight": uniform("expand", 5, C), "project_weight": uniform("project", 3, 5)},
        ),
    }


FUNCTIONS = [op for op in OPS if not op.startswith("prepare_")]
NAMED = [pytest.param(op, *each.values, id=f"{op}-{each.values[0]}", marks=each.marks) for op in FUNCTIONS
         for each in kernels(op, *OPS[op])]  # fmt: skip


def usual(*ops: str) -> list[Any]:
    """`NAMED`, of which the usual run has these ops alone."""
    return [
        pytest.param(*each.values, id=each.id, marks=[*each.marks] + [pytest.mark.slow] * (each.values[0] not in ops))
        for each in NAMED
    ]


FEW = usual("linear", "window_attention")  # of what takes seconds a case: an op with something kept, one with something added


def leaves(op: str, dtype: torch.dtype, device: torch.device = DEVICE) -> tuple[Call, dict[str, Tensor]]:
    call, tensors = examples()[op]
    return call, {name: t.to(device, dtype).requires_grad_() for name, t in tensors.items()}


def scalar(call: Call, tensors: dict[str, Tensor], **named: Any) -> Tensor:
    out = call(**tensors, **named)
    return (out.double() ** 2 * uniform("what it is weighed with", *out.shape).to(out.device)).sum()


def close(found: Tensor, expected: Tensor) -> None:
    scale = max(1.0, float(expected.abs().max()) if expected.numel() else 1.0)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5 * scale)


def twice(op: str, dtype: torch.dtype, backend: str) -> dict[str, Tensor]:
    """The gradients of a function of the gradients."""
    call, tensors = leaves(op, dtype, device_of(backend))
    firsts = torch.autograd.grad(scalar(call, tensors, backend=backend), list(tensors.values()), create_graph=True)
    again = sum(
        (g.double() * uniform(f"d{name}", *g.shape).to(g.device)).sum() for name, g in zip(tensors, firsts, strict=True)
    )
    assert isinstance(again, Tensor)
    seconds = torch.autograd.grad(again, list(tensors.values()), allow_unused=True)
    return {name: torch.zeros_like(t) if g is None else g for (name, t), g in zip(tensors.items(), seconds, strict=True)}


@pytest.mark.parametrize(("op", "kernel"), NAMED)
def test_second_derivatives(op: str, kernel: str) -> None:
    expected = twice(op, torch.float64, "reference")
    for name, found in twice(op, torch.float32, kernel).items():
        close(found, expected[name].to(found.device))


@pytest.mark.parametrize(("op", "kernel"), NAMED)
def test_what_the_backward_reads_must_not_change_before_it(op: str, kernel: str) -> None:
    """As in PyTorch. A residual is added and not read again."""
    _, tensors = leaves(op, torch.float32, device_of(kernel))
    for name in set(tensors) - {"residual"}:
        call, tensors = leaves(op, torch.float32, device_of(kernel))
        out = call(**tensors, backend=kernel).sum()
        with torch.no_grad():
            tensors[name].mul_(1.5)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.backward()


def test_derivatives_of_every_order_and_of_what_depends_on_each_other() -> None:
    call, tensors = leaves("window_attention", torch.float64, torch.device("cpu"))

    def third(backend: str) -> Tensor:
        bias = tensors["qkv_bias"]
        qkv = tensors["qkv"] * bias  # so that one input of the op is a function of another
        out = (call(qkv=qkv, bias_table=tensors["bias_table"], qkv_bias=bias.sin(), backend=backend) ** 3).sum()
        for _ in range(3):
            (out,) = torch.autograd.grad(out, bias, create_graph=True)
            out = (out**2).sum()
        return out

    torch.testing.assert_close(third("auto"), third("reference"), rtol=1e-9, atol=0)
    assert torch.autograd.gradgradcheck(lambda qkv, table, bias: call(qkv, table, qkv_bias=bias), tuple(tensors.values()))


@pytest.mark.parametrize("kernel", kernels("linear", "triton"))
@pytest.mark.parametrize("way", [contextlib.nullcontext, partial(FlopCounterMode, display=False)], ids=["eager", "operators"])
def test_second_derivatives_under_the_autocast_of_the_forward(kernel: str, way: Callable[[], Any]) -> None:
    device = device_of(kernel)

    def seconds(backend: str) -> Tensor:
        call, tensors = leaves("linear", torch.float32, device)
        with way():
            with torch.autocast(device.type, torch.bfloat16):
                loss = scalar(call, tensors, backend=backend)
            (first,) = torch.autograd.grad(loss, tensors["x"], create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), tensors["x"])
        return second

    expected = seconds("reference").double()
    torch.testing.assert_close(seconds(kernel).double(), expected, rtol=0, atol=0.03 * float(expected.abs().max()))


@pytest.mark.parametrize(("op", "kernel"), NAMED)
def test_a_kernel_asked_for_by_name_refuses_transforms(op: str, kernel: str) -> None:
    call, tensors = leaves(op, torch.float32, device_of(kernel))
    name, first = next(iter(tensors.items()))
    rest = {key: t for key, t in tensors.items() if key != name}

    def run(x: Tensor) -> Tensor:
        return call(**{name: x}, **rest, backend=kernel)

    for transform in (
        lambda: torch.func.jvp(run, (first,), (first,)),
        lambda: torch.func.vjp(run, first),
        lambda: torch.func.vmap(run)(first[None]),
    ):
        with pytest.raises(BackendError, match=rf"{kernel!r} cannot serve {op}: a transform.*reference serves"):
            transform()
    with forward_ad.dual_level(), pytest.raises(BackendError, match="forward-mode"):
        run(forward_ad.make_dual(first, first))


TRANSFORMS: dict[str, Callable[[Call, Tensor], Any]] = {
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x.cos(),))[1],
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "vmap": lambda f, x: torch.func.vmap(f)(torch.stack([x, x.sin()])),
    "vmap of grad": lambda f, x: torch.func.vmap(torch.func.grad(lambda y: f(y).sin().sum()))(torch.stack([x, x.sin()])),
    "hessian": lambda f, x: torch.func.hessian(lambda y: f(y).sin().sum())(x),
    "linearize": lambda f, x: torch.func.linearize(f, x)[1](x.cos()),
    "functional.hessian": lambda f, x: torch.autograd.functional.hessian(lambda y: f(y).sin().sum(), x),
    "functional.jvp": lambda f, x: torch.autograd.functional.jvp(f, x, x.cos())[1],
    "batched gradients": lambda f, x: torch.autograd.functional.jacobian(f, x, vectorize=True),
}


TRANSFORMS["compiled jvp"] = torch.compile(TRANSFORMS["jvp"], backend="eager", fullgraph=True)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_give_the_values_of_the_reference(transform: str) -> None:
    call, tensors = leaves("window_attention", torch.float64, torch.device("cpu"))
    table, bias, qkv = tensors["bias_table"].detach(), tensors["qkv_bias"].detach(), tensors["qkv"].detach()

    def value(backend: str) -> Tensor:
        with use_backend(backend):
            found: Tensor = TRANSFORMS[transform](lambda x: call(x, table, qkv_bias=bias), qkv)
        return found

    torch.testing.assert_close(value("auto"), value("reference"), rtol=0, atol=1e-11)
    assert value("auto").abs().max() > 0.01


@pytest.mark.parametrize("op", FUNCTIONS)
def test_transforms_within_transforms(op: str) -> None:
    call, tensors = leaves(op, torch.float64, torch.device("cpu"))
    name, x = next(iter(tensors.items()))
    rest = {key: t.detach() for key, t in tensors.items() if key != name}

    def value(t: Tensor) -> Tensor:
        return scalar(call, {name: x.detach() + t * x.detach().cos(), **rest})

    at = torch.tensor(0.1, dtype=torch.float64)
    expected = torch.autograd.functional.hessian(value, at)
    for found in (
        torch.func.jacrev(torch.func.jacrev(value))(at),
        torch.func.hessian(value)(at),
        torch.autograd.functional.hessian(value, at, vectorize=True, outer_jacobian_strategy="forward-mode"),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("op", "kernel"), NAMED)
def test_batched_gradients(op: str, kernel: str) -> None:
    call, tensors = leaves(op, torch.float32, device_of(kernel))
    out = call(**tensors, backend=kernel)
    grads = torch.stack([torch.ones_like(out), out.detach()])
    wanted = list(tensors.values())
    found = torch.autograd.grad(out, wanted, grads, is_grads_batched=True, retain_graph=True)
    for i, grad in enumerate(grads):
        for each, expected in zip(found, torch.autograd.grad(out, wanted, grad, retain_graph=True), strict=True):
            close(each[i], expected.double())


@pytest.mark.parametrize(("op", "kernel"), FEW)
def test_a_traced_graph_keeps_its_gradients(op: str, kernel: str) -> None:
    call, tensors = leaves(op, torch.float32, device_of(kernel))
    wanted = list(tensors.values())

    def run(*given: Tensor) -> Tensor:
        return call(**dict(zip(tensors, given, strict=True)), backend=kernel)

    class Module(torch.nn.Module):
        def forward(self, *given: Tensor) -> Tensor:
            return run(*given)

    expected = torch.autograd.grad(run(*wanted).sum(), wanted)
    detached = tuple(t.detach() for t in wanted)
    graphs = {
        "export": torch.export.export(Module(), detached).module(),
        "make_fx": make_fx(run)(*detached),
        "make_fx before dispatch": make_fx(run, pre_dispatch=True)(*detached),
    }
    for graph in graphs.values():
        found = torch.autograd.grad(graph(*wanted).sum(), wanted)
        for each, like in zip(found, expected, strict=True):
            assert torch.equal(each, like)


@pytest.mark.parametrize(("op", "kernel"), NAMED)
def test_flop_counters_say_what_the_reference_costs(op: str, kernel: str) -> None:
    call, tensors = leaves(op, torch.float32, device_of(kernel))

    def flops(backend: str, *frozen: str) -> int:
        given = {name: t.detach() if name in frozen else t for name, t in tensors.items()}
        with FlopCounterMode(display=False) as counter:
            out = call(**given, backend=backend)
            torch.autograd.grad(out.sum(), [t for t in given.values() if t.requires_grad])
        return int(counter.get_total_flops())

    assert flops(kernel) == flops("reference")
    if len(tensors) > 1:
        first = next(iter(tensors))
        assert flops(kernel, first) == flops("reference", first)


@pytest.mark.parametrize(("op", "kernel"), usual(*set(FUNCTIONS) - {"depthwise_norm"}))
def test_gradients_that_nobody_needs_are_not_computed(op: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gradient alone is as it is among all; the kernels leave out the others that are maps, which cost the most."""
    call, tensors = leaves(op, torch.float32, device_of(kernel))
    expected = torch.autograd.grad(call(**tensors, backend=kernel).sum(), list(tensors.values()))
    module = kernels_on(op, kernel, device_of(kernel))
    backward = module.backward
    in_vain: list[Tensor] = []

    def watched(*args: Any, needs: list[bool], **named: Any) -> list[Tensor | None]:
        found: list[Tensor | None] = backward(*args, needs=needs, **named)
        in_vain.extend(g for g, need in zip(found, needs, strict=True) if not need and g is not None and g.dim() == 4)
        return found

    monkeypatch.setattr(module, "backward", watched)
    for name, gradient in zip(tensors, expected, strict=True):
        given = {key: t if key == name else t.detach() for key, t in tensors.items()}
        (found,) = torch.autograd.grad(call(**given, backend=kernel).sum(), [tensors[name]])
        assert torch.equal(found, gradient), name
    assert not in_vain


@pytest.mark.parametrize(("op", "kernel"), FEW)
def test_opcheck(op: str, kernel: str) -> None:
    call, tensors = leaves(op, torch.float32, device_of(kernel))
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "hifuse_fast::fused" in func.name():
                calls.append((func, args, kwargs or {}))
            return func(*args, **(kwargs or {}))

    with Watch():
        call(**tensors, backend=kernel).sum().backward()
    assert [func.name() for func, _, _ in calls] == [f"hifuse_fast::fused_{op}", f"hifuse_fast::fused_{op}_backward"]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for func, args, named in calls:
        copies = [t.detach().clone().requires_grad_(t.is_floating_point()) if isinstance(t, Tensor) else t for t in args]
        torch.library.opcheck(func, tuple(copies), named, test_utils=tests)


def test_compiled_code_is_of_the_backend_that_is_chosen() -> None:
    call, tensors = leaves("window_attention", torch.float32, torch.device("cpu"))
    torch._dynamo.reset()
    graphs: list[set[str]] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    compiled = torch.compile(lambda: call(**tensors), backend=keep, fullgraph=True)
    again = torch.compile(compiled, backend=keep, fullgraph=True)
    for backend, run in (("reference", compiled), ("native", compiled), ("reference", again), ("native", again)):
        with use_backend(backend):
            before = len(graphs)
            run()
            assert len(graphs) <= before + 1
    assert [any("fused" in target for target in graph) for graph in graphs] == [False, True]


def test_a_program_for_another_device_says_so() -> None:
    with pytest.raises(BackendError, match=r"'native' serves no cuda tensors.*export the model again on cuda"):
        kernels_on("window_attention", "native", torch.device("cuda"))
