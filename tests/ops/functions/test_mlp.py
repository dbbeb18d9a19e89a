"""The MLP: the reference is its definition, kernels obey the rule without the whole hidden map."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hifuse_fast.backends import tables
from hifuse_fast.ops import mlp
from hifuse_fast.ops.functions.mlp import cuda
from hifuse_fast.testing import relative_error
from tests.support.functional import DTYPES, check_compiles, check_parity
from tests.support.kernels import DEVICE, kernels, uniform

pytestmark = pytest.mark.gpu
KERNELS = kernels("mlp", "triton", "cuda")
WAYS = {
    "fused": {"fused": 1, "BLOCK_M": 32, "BLOCK_H": 32, "num_warps": 4, "num_stages": 1},
    "vendor": {"fused": 0, "scratch": 4},  # KiB: each takes several parts
}
BACKWARD = {"scratch": 8, "BLOCK": 256, "num_warps": 4}


@dataclass(frozen=True)
class Case:
    """A call, named by what it is there for."""

    name: str
    size: tuple[int, int, int, int]  # B, H, W, K
    hidden: int
    columns: int

    def tensors(self) -> dict[str, Tensor]:
        depth = self.size[3]
        expand = uniform("expand", self.hidden, depth, scale=(3 / depth) ** 0.5)
        project = uniform("project", self.columns, self.hidden, scale=(3 / self.hidden) ** 0.5)
        return {"u": 0.5 + uniform("u", *self.size), "expand_weight": expand, "project_weight": project}


CASES = [
    Case("odd", (2, 5, 7, 33), 70, 17),
    Case("sides of two powers of two", (1, 6, 6, 48), 64, 96),
    Case("one pixel", (1, 1, 1, 16), 32, 16),
    Case("few of everything", (1, 3, 5, 3), 5, 7),
    Case("one of everything", (1, 1, 1, 1), 1, 1),
]
named = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
ways = pytest.mark.parametrize("way", WAYS)


@contextlib.contextmanager
def configured(way: str) -> Iterator[None]:
    with (
        tables.override("mlp_forward", WAYS[way]),
        tables.override("mlp_backward", BACKWARD),
        pytest.MonkeyPatch.context() as m,
    ):
        m.setattr(cuda, "SCRATCH", 4)
        m.setattr(cuda, "ROWS", 8)
        yield


def by_definition(u: Tensor, expand_weight: Tensor, project_weight: Tensor) -> Tensor:
    """Pixel by pixel, from the text."""
    out = u.new_empty(*u.shape[:3], len(project_weight))
    for place in itertools.product(*map(range, u.shape[:3])):
        z = (expand_weight * u[place]).sum(1)
        out[place] = (project_weight * (z * 0.5 * (1 + torch.erf(z / math.sqrt(2))))).sum(1)
    return out


@named
def test_reference_is_the_definition(case: Case) -> None:
    tensors = case.tensors()
    assert relative_error(mlp(**tensors, backend="reference"), by_definition(**tensors)) < 1e-12


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@ways
@named
def test_kernel_obeys_the_rule(case: Case, way: str, dtype: torch.dtype, kernel: str) -> None:
    with configured(way):
        check_parity(mlp, case.tensors(), dtype, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_configured_tiles_obey_the_rule(kernel: str) -> None:
    """Stage 1 as the table has it for many pixels, with a last tile that is not full; and the backward in one part."""
    case = Case("stage 1", (1, 11, 13, 288), 1152, 96)
    config = tables.table("sm_90")["mlp_forward"]["16-bit 288 1152 96"]
    with tables.override("mlp_forward", {name: value for name, value in config.items() if name != "origin"}):
        check_parity(mlp, case.tensors(), torch.bfloat16, kernel)


class Largest(TorchDispatchMode):
    """The most bytes that a tensor made within the block has."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [t.untyped_storage().nbytes() for t in tree_leaves(made) if isinstance(t, Tensor)]
        self.bytes = max([self.bytes, *sizes])
        return made


@pytest.mark.parametrize("kernel", KERNELS)
@ways
def test_the_whole_hidden_map_is_never_in_memory(way: str, kernel: str) -> None:
    """Of 1000 pixels and 64 units it has 256 KB; what the call is given, and what it returns, has 16 KB at most."""
    tensors = {name: t.float() for name, t in Case("large", (10, 10, 10, 4), 64, 4).tensors().items()}
    leaves = {name: t.requires_grad_() for name, t in tensors.items()}
    with Largest() as reference:
        mlp(**leaves, backend="reference").sum().backward()
    with configured(way), Largest() as kept:
        mlp(**leaves, backend=kernel).sum().backward()
    assert reference.bytes >= 256_000
    assert kept.bytes <= 16_000


def test_the_configured_scratch_is_bounded() -> None:
    for architecture in tables.architectures():
        entries = [*tables.table(architecture)["mlp_forward"].values(), *tables.table(architecture)["mlp_backward"].values()]
        assert all(entry.get("scratch", 0) <= 128 * 1024 for entry in entries)


@pytest.mark.parametrize("kernel", KERNELS)
@ways
def test_strides(way: str, kernel: str) -> None:
    tensors = {name: t.float() for name, t in Case("strided", (2, 4, 6, 8), 12, 5).tensors().items()}
    u = tensors.pop("u")
    views = {
        "NCHW memory": u.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "slice of channels": torch.cat([u, u], -1)[..., :8],
        "expanded batch": u[:1].expand(2, -1, -1, -1),
    }
    with configured(way):
        for name, view in views.items():
            leaf, plain = view.detach().requires_grad_(), view.detach().contiguous().requires_grad_()
            out, expected = mlp(leaf, **tensors, backend=kernel), mlp(plain, **tensors, backend=kernel)
            out.sum().backward()  # the gradient is an expanded scalar
            expected.backward(torch.ones_like(expected))
            assert out.is_contiguous(), name
            torch.testing.assert_close(out, expected, msg=name)
            torch.testing.assert_close(leaf.grad, plain.grad, msg=name)
        turned = {name: t.t().contiguous().t() for name, t in tensors.items()}
        torch.testing.assert_close(mlp(plain, **turned, backend=kernel), expected)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
@ways
def test_batch_0(way: str, backend: str) -> None:
    leaves = {name: t.float() for name, t in CASES[0].tensors().items()}
    leaves = {name: (t[:0] if name == "u" else t).requires_grad_() for name, t in leaves.items()}
    with configured(way):
        out = mlp(**leaves, backend=backend)
        out.sum().backward()
    assert out.shape == (0, 5, 7, 17)
    assert all(torch.equal(leaf.grad, torch.zeros_like(leaf)) for leaf in leaves.values())


@pytest.mark.parametrize("kernel", KERNELS)
@named
def test_only_the_gradients_that_are_wanted(case: Case, kernel: str) -> None:
    tensors = {name: t.float() for name, t in case.tensors().items()}
    for name, tensor in tensors.items():
        leaf, grads = tensor.clone().requires_grad_(), []
        for backend in (kernel, "reference"):
            with configured("vendor"):
                out = mlp(**{**tensors, name: leaf}, backend=backend)
                grads.append(torch.autograd.grad(out, leaf, uniform("grad", *out.shape).float())[0])
        torch.testing.assert_close(*grads, msg=lambda text, name=name: f"d{name}: {text}")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("map_dtype", [torch.float32, torch.bfloat16], ids=str)
@ways
def test_under_autocast_the_dtypes_are_those_of_pytorch(way: str, map_dtype: torch.dtype, kernel: str) -> None:
    results = []
    for backend in (kernel, "reference"):
        leaves = {name: t.float() for name, t in CASES[0].tensors().items()}
        leaves["u"] = leaves["u"].to(map_dtype)
        wanted = [leaf.requires_grad_() for leaf in leaves.values()]
        with configured(way):
            with torch.autocast(DEVICE.type, torch.bfloat16):
                out = mlp(**leaves, backend=backend)
            grads = torch.autograd.grad(out, wanted, uniform("grad", *out.shape).to(out.dtype))
        results.append([out.detach(), *grads])
    for actual, expected in zip(*results, strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual.double(), expected.double(), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("backend", ["auto", *KERNELS])
@ways
def test_compile_sees_through_it(way: str, backend: str) -> None:
    torch._dynamo.reset()  # all cases are one function to it, and it compiles one only so often
    with configured(way):
        check_compiles(mlp, CASES[0].tensors(), backend)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
@ways
def test_meta_device(way: str, backend: str) -> None:
    tensors = {name: t.to("meta", torch.bfloat16).requires_grad_() for name, t in CASES[0].tensors().items()}
    with configured(way):
        out = mlp(**tensors, backend=backend)
        out.sum().backward()
    assert (out.device.type, out.shape, out.dtype) == ("meta", (2, 5, 7, 17), torch.bfloat16)
    assert all((t.grad.shape, t.grad.dtype) == (t.shape, t.dtype) for t in tensors.values())


U, E, P = torch.randn(1, 3, 5, 8), torch.ones(12, 8), torch.ones(4, 12)
BAD = [
    ({"u": U[0]}, ValueError, r"u must be \[B, H, W, C\] with H, W and C at least 1, got \[3, 5, 8\]"),
    ({"u": U.long()}, TypeError, "u must be a floating-point tensor, got torch.int64"),
    ({"expand_weight": None}, TypeError, "expand_weight must be a torch.Tensor, got NoneType"),
    ({"expand_weight": E.t()}, ValueError, r"expand_weight must be \[hidden, 8\], got \[8, 12\]"),
    ({"expand_weight": E[..., None, None]}, ValueError, r"expand_weight must be \[hidden, 8\], got \[12, 8, 1, 1\]"),
    ({"expand_weight": E[:0]}, ValueError, r"expand_weight must be \[hidden, 8\], got \[0, 8\]"),
    ({"expand_weight": E.double()}, TypeError, "expand_weight must be torch.float32, got torch.float64"),
    ({"project_weight": 1.0}, TypeError, "project_weight must be a torch.Tensor, got float"),
    ({"project_weight": E}, ValueError, r"project_weight must be \[N, 12\], got \[12, 8\]"),
    ({"project_weight": P.to("meta")}, ValueError, "project_weight must be on the device of the map, cpu, got meta"),
    ({"project_weight": P.half()}, TypeError, "project_weight must be torch.float32, got torch.float16"),
    ({"backend": "mps"}, ValueError, "backend must be one of auto, reference, native, triton, cuda, got 'mps'"),
]


@pytest.mark.parametrize(("changed", "error", "message"), BAD)
def test_bad_input_is_named(changed: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mlp(**{"u": U, "expand_weight": E, "project_weight": P, **changed})
