"""The MLP on a CPU: outputs and gradients over several parts, and what the forward keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hifuse_fast
from hifuse_fast.ops import mlp
from hifuse_fast.ops.functions.mlp import native
from tests.support.functional import check_compiles, check_parity
from tests.support.kernels import kernels, uniform

KERNELS = kernels("mlp", "native")
SIZES = {
    "odd": (2, 5, 7, 33, 70, 17),
    "one pixel": (1, 1, 1, 16, 32, 16),
    "one of everything": (1, 1, 1, 1, 1, 1),
    "a hidden unit": (1, 9, 9, 5, 1, 3),
}


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a few pixels each."""
    monkeypatch.setattr(native, "PART", 200)
    monkeypatch.setattr(native, "FEWEST", 3)


def tensors(batch: int, height: int, width: int, depth: int, hidden: int, columns: int) -> dict[str, Tensor | None]:
    return {
        "u": 0.5 + uniform("u", batch, height, width, depth).cpu(),
        "expand_weight": uniform("expand", hidden, depth, scale=(3 / depth) ** 0.5).cpu(),
        "project_weight": uniform("project", columns, hidden, scale=(3 / hidden) ** 0.5).cpu(),
    }


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_outputs_and_gradients_obey_the_rule(size: tuple[int, ...], kernel: str) -> None:
    check_parity(mlp, tensors(*size), torch.float32, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_strides_and_batch_0(kernel: str) -> None:
    given = {name: t.float() for name, t in tensors(2, 4, 6, 8, 12, 5).items() if t is not None}
    expected = mlp(**given, backend=kernel)
    assert expected.is_contiguous()
    views = {name: t.transpose(0, 1).contiguous().transpose(0, 1) for name, t in given.items()}
    torch.testing.assert_close(mlp(**views, backend=kernel), expected)
    none = {name: t.clone().requires_grad_() for name, t in {**given, "u": given["u"][:0]}.items()}
    out = mlp(**none, backend=kernel)
    out.sum().backward()
    assert out.shape == (0, 4, 6, 5)
    assert all(torch.equal(leaf.grad, torch.zeros_like(leaf)) for leaf in none.values())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["u", "expand_weight", "project_weight"])
def test_only_the_gradients_that_are_wanted(name: str, kernel: str) -> None:
    given = {each: t.float() for each, t in tensors(2, 4, 3, 6, 10, 5).items() if t is not None}
    grads = []
    for backend in (kernel, "reference"):
        leaf = given[name].clone().requires_grad_()
        grads += torch.autograd.grad(mlp(**{**given, name: leaf}, backend=backend).square().sum(), leaf)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_hidden_map_is_kept_once(kernel: str) -> None:
    given = {name: t.float().requires_grad_() for name, t in tensors(2, 5, 7, 8, 64, 8).items() if t is not None}
    kept: dict[str, set[int]] = {}
    for backend in (kernel, "reference"):
        found = kept.setdefault(backend, set())

        def keep(x: Tensor, found: set[int] = found) -> Tensor:
            if x.numel() == 70 * 64:
                found.add(x.untyped_storage().data_ptr())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            out = mlp(**given, backend=backend)
        out.sum().backward()
    assert [len(found) for found in kept.values()] == [1, 2]


@pytest.mark.parametrize("kernel", KERNELS)
def test_compile_sees_through_it(kernel: str) -> None:
    check_compiles(mlp, tensors(2, 5, 7, 12, 20, 9), kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_it_serves_float32_alone(kernel: str) -> None:
    u, expand, project = torch.randn(1, 4, 4, 6), torch.randn(12, 6), torch.randn(6, 12)
    assert torch.equal(mlp(u, expand, project), mlp(u, expand, project, backend=kernel))
    with pytest.raises(hifuse_fast.BackendError, match=r"its products are of float32, not torch\.float64"):
        mlp(u.double(), expand.double(), project.double(), backend=kernel)
