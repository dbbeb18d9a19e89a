"""What every prepared op refuses at a call: transforms, gradients, and `out` in memory that is read."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from hifuse_fast import ops
from hifuse_fast.ops.prepared.base import PreparedOp
from tests.support.kernels import kernels

C, S = 8, 2


@dataclass(frozen=True)
class Subject:
    """An op of 8 channels: how it is prepared, its inputs by name, the width of its result, and what its errors advise."""

    prepare: Callable[..., PreparedOp]
    maps: dict[str, tuple[int, ...]]
    columns: int
    remedy: str
    residual: bool = False

    def inputs(self) -> dict[str, Tensor]:
        return {name: torch.randn(shape) for name, shape in self.maps.items()}

    def out(self) -> Tensor:
        return torch.empty(2, 4, 4, self.columns)


X = (2, 4, 4, C)
SUBJECTS = {
    "gated_concat": Subject(
        partial(
            ops.prepare_gated_concat, torch.randn(2, 7, 7), torch.randn(1), torch.randn(S, C), torch.randn(C, S),
            torch.randn(3 * C), torch.randn(3 * C),
        ),
        {"local_map": X, "global_map": X, "x": X}, 3 * C, "hifuse_fast.ops.max_mean and hifuse_fast.ops.concat_norm",
    ),
    "linear": Subject(
        partial(ops.prepare_linear, torch.randn(C, 2 * C), torch.randn(C)), {"maps[0]": X, "maps[1]": X}, C,
        "hifuse_fast.ops.linear", residual=True,
    ),
    "local_block": Subject(
        partial(ops.prepare_local_block, torch.randn(C, 3, 3), torch.randn(C), torch.randn(C, C), torch.randn(C)), {"x": X}, C,
        "hifuse_fast.ops.depthwise_norm and hifuse_fast.ops.linear",
    ),
    "mixer": Subject(partial(ops.prepare_mixer, torch.randn(C, C, 3, 3)), {"z": X}, C, "hifuse_fast.ops.mixer"),
    "mlp": Subject(
        partial(ops.prepare_mlp, torch.randn(16, C), torch.randn(16), torch.randn(C, 16), torch.randn(C)), {"u": X}, C,
        "hifuse_fast.ops.mlp", residual=True,
    ),
    "window_attention": Subject(
        partial(ops.prepare_window_attention, torch.randn(169, 1), head_dim=C, num_heads=1), {"qkv": (2, 4, 4, 3 * C)}, C,
        "hifuse_fast.ops.window_attention",
    ),
}  # fmt: skip
BACKENDS = ["reference", *kernels("prepare_linear", "native")]
EVERY = [pytest.param(subject, id=name) for name, subject in SUBJECTS.items()]
every = pytest.mark.parametrize("subject", EVERY)


def stem(backend: str = "reference") -> PreparedOp:
    weights = torch.randn(2, C, 3, 4, 4), torch.randn(2, C), torch.randn(2, C), torch.randn(2, C)
    return ops.prepare_stem(*weights, eps=(1e-5, 1e-6), dtype=torch.float32, backend=backend)


def over(x: Tensor, like: Tensor, offset: int) -> Tensor:
    """A map of the shape of `like` from element `offset` of the memory of x, which is large enough."""
    return x.flatten()[offset : offset + like.numel()].view(like.shape)


@every
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("offset", [0, 1, 250])
def test_out_in_memory_that_is_read_is_refused(subject: Subject, backend: str, offset: int) -> None:
    op, out = subject.prepare(dtype=torch.float32, backend=backend), subject.out()
    inputs = subject.inputs() | ({"residual": torch.randn(out.shape)} if subject.residual else {})
    for name, x in inputs.items():
        memory = torch.zeros(x.numel() + out.numel() + 500)
        given = {**inputs, name: over(memory, x, 0)}
        named = {"residual": given.pop("residual")} if subject.residual else {}
        with pytest.raises(ValueError, match="out must not share memory with " + name.replace("[", r"\[")):
            op(*given.values(), **named, out=over(memory, out, offset))
        op(*given.values(), **named, out=over(memory, out, x.numel()))  # a neighbour in one storage


@every
def test_out_over_packed_weights_is_refused(subject: Subject) -> None:
    op = subject.prepare(dtype=torch.float32, backend="reference")
    name, packed = next((name, x) for name, x in op.packed().items() if x.numel() >= subject.columns)
    out = over(packed, torch.empty(1, 1, 1, subject.columns), 0)
    maps = [x[:1, :1, :1].contiguous() for x in subject.inputs().values()]
    with pytest.raises(ValueError, match=f"out must not share memory with the op's {name}"):
        op(*maps, out=out)


def test_out_by_place_is_checked_too() -> None:
    z = torch.randn(X)
    with pytest.raises(ValueError, match="out must not share memory with z"):
        SUBJECTS["mixer"].prepare(dtype=torch.float32)(z, z)


def test_out_within_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="out must be contiguous"):
        SUBJECTS["mixer"].prepare(dtype=torch.float32)(torch.randn(X), out=torch.empty(1, 4, 4, C).expand(X))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_maps_of_the_stem_are_apart(backend: str) -> None:
    op, images, both = stem(backend), torch.randn(1, 3, 8, 8), torch.empty(400)
    maps = [over(both, torch.empty(1, 2, 2, C), offset) for offset in (0, 16, 32)]
    with pytest.raises(ValueError, match=r"out\[0\] must not share memory with out\[1\]"):
        op(images, out=(maps[0], maps[1]))
    with pytest.raises(ValueError, match=r"out\[1\] must not share memory with images"):
        op(images, out=(maps[0], over(images, maps[0], 100)))
    op(images, out=(maps[0], maps[2]))


@every
def test_a_tensor_that_requires_a_gradient_is_refused(subject: Subject) -> None:
    op, inputs = subject.prepare(dtype=torch.float32), subject.inputs()
    for name, x in inputs.items():
        maps = {**inputs, name: x.clone().requires_grad_()}.values()
        with pytest.raises(RuntimeError) as error:
            op(*maps)
        assert str(error.value).startswith(f"{name} requires a gradient")
        assert subject.remedy in str(error.value)
        with torch.no_grad():
            op(*maps)


def test_images_that_require_a_gradient_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"images requires a gradient.*hifuse_fast.ops.layer_norm, or .*torch.no_grad"):
        stem()(torch.randn(1, 3, 8, 8, requires_grad=True))


def under_dual(op: Any, *maps: Tensor) -> None:
    with forward_ad.dual_level():
        op(*(forward_ad.make_dual(x, x) for x in maps))


TRANSFORMS = {
    "jvp": lambda op, *maps: torch.func.jvp(op, maps, maps),
    "vmap": lambda op, *maps: torch.vmap(op)(*(x[None] for x in maps)),
    "grad": lambda op, *maps: torch.func.grad(lambda *maps: op(*maps).sum())(*maps),
    "dual tensors": under_dual,
}


@every
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_is_refused(subject: Subject, transform: str) -> None:
    op = subject.prepare(dtype=torch.float32)
    with torch.no_grad(), pytest.raises(RuntimeError) as error:
        TRANSFORMS[transform](op, *subject.inputs().values())
    assert f"take {subject.remedy}" in str(error.value)


SPARSE = {
    "torch.sparse_coo": lambda shape: torch.randn(shape).to_sparse(),
    "torch.sparse_csr": lambda shape: torch.randn(shape[-2:]).to_sparse_csr(),
    "nested": lambda shape: torch.nested.nested_tensor([torch.randn(shape[1:])] * shape[0]),
}


@every
@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sparse_and_nested_maps_are_refused(subject: Subject, kind: str) -> None:
    name, x = next(iter(subject.inputs().items()))
    rest = list(subject.inputs().values())[1:]
    with pytest.raises(TypeError) as error:
        subject.prepare(dtype=torch.float32)(SPARSE[kind](x.shape), *rest)
    assert re.match(rf"{re.escape(name)} must be (a|one) dense tensor, got (a nested one|{re.escape(kind)}):", str(error.value))


@pytest.mark.parametrize("kind", SPARSE)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sparse_and_nested_arguments_of_functions_are_refused(kind: str) -> None:
    x, vector = torch.randn(X), torch.randn(C)
    with pytest.raises(TypeError, match=r"^x must be (a|one) dense tensor, got (a nested one|torch\.sparse_\w+):"):
        ops.layer_norm(SPARSE[kind](X), vector, vector)
    with pytest.raises(TypeError, match=r"^weight must be (a|one) dense tensor, got (a nested one|torch\.sparse_\w+):"):
        ops.layer_norm(x, SPARSE[kind]((1, C)), vector)
    with pytest.raises(TypeError, match=r"^weight must be (a|one) dense tensor, got (a nested one|torch\.sparse_\w+):"):
        ops.prepare_linear(SPARSE[kind]((C, C)), vector, dtype=torch.float32)
    with pytest.raises(TypeError, match=r"^images must be (a|one) dense tensor, got (a nested one|torch\.sparse_\w+):"):
        stem()(SPARSE[kind]((1, 3, 8, 8)))
