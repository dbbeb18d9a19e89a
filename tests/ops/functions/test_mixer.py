"""The mixer: the reference is its definition, kernels obey the rule, every way in and out of it works."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.ops import mixer
from hifuse_fast.ops.functions.layout import is_channels_last
from hifuse_fast.testing import relative_error
from tests.support.functional import DTYPES, check_compiles, check_parity
from tests.support.kernels import DEVICE, kernels, uniform

pytestmark = pytest.mark.gpu
KERNELS = kernels("mixer", "triton", "cuda")
WAYS = {
    "fused": {"fused": 1, "BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2},
    "vendor": {"fused": 0},
}


@dataclass(frozen=True)
class Case:
    """A call, named by what it is there for."""

    name: str
    size: tuple[int, int, int, int]  # B, H, W, C
    way: str = "fused"  # or "vendor", "depthwise"

    def tensors(self) -> dict[str, Tensor]:
        channels, depth = self.size[3], 1 if self.way == "depthwise" else self.size[3]
        weight = uniform("weight", channels, depth, 3, 3, scale=(3 / (9 * depth)) ** 0.5)
        return {"z": 0.5 + uniform("z", *self.size), "weight": weight}

    @contextlib.contextmanager
    def configured(self) -> Iterator[None]:
        # Few programs, of several tiles each.
        backward = {"elements": 64, "channels": 64, "run": 2, "rows": 2, "programs": 1, "num_warps": 1}
        with (
            tables.override("mixer_dense", WAYS.get(self.way, {})),
            tables.override("depthwise_norm_backward_filters", backward),
        ):
            yield


CASES = [
    Case(f"{name}, {way}", (1, 3, 5, 19) if way == "depthwise" else size, way)
    for name, size in {
        "odd": (2, 5, 7, 33),
        "wide": (1, 2, 3, 70),
        "one pixel": (3, 1, 1, 20),
        "one row": (1, 1, 9, 16),
        "one of everything": (1, 1, 1, 1),
    }.items()
    for way in ("fused", "vendor", "depthwise")
    if way != "depthwise" or name == "odd"
]
named = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
one_each = pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case.way)


def by_definition(z: Tensor, weight: Tensor) -> Tensor:
    """Pixel by pixel, from the text."""
    batch, height, width, channels = z.shape
    u = z.clone()
    for b, i, j in itertools.product(range(batch), range(height), range(width)):
        c = z.new_zeros(channels)
        for di, dj in itertools.product(range(3), range(3)):
            p, q = i + di - 1, j + dj - 1
            if 0 <= p < height and 0 <= q < width:
                tap = weight[:, :, di, dj]
                c += tap[:, 0] * z[b, p, q] if weight.shape[1] < channels else (tap * z[b, p, q]).sum(1)
        u[b, i, j] += c * 0.5 * (1 + torch.erf(c / math.sqrt(2)))
    return u


@named
def test_reference_is_the_definition(case: Case) -> None:
    tensors = case.tensors()
    assert relative_error(mixer(**tensors, backend="reference"), by_definition(**tensors)) < 1e-12


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@named
def test_kernel_obeys_the_rule(case: Case, dtype: torch.dtype, kernel: str) -> None:
    with case.configured():
        check_parity(mixer, case.tensors(), dtype, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("way", ["vendor", "depthwise"])
def test_the_configured_tiles_obey_the_rule(way: str, kernel: str) -> None:
    """As the table has it, with a last tile that is not full."""
    check_parity(mixer, Case("configured", (1, 2, 3, 96), way).tensors(), torch.bfloat16, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@one_each
def test_strides(case: Case, kernel: str) -> None:
    tensors = {name: t.float() for name, t in Case("strided", (1, 4, 6, 8), case.way).tensors().items()}
    z, weight = tensors["z"], tensors["weight"]
    views = {
        "NCHW memory": z.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "W and H swapped": z.transpose(1, 2).contiguous().transpose(1, 2),
        "slice of channels": torch.cat([z, z], -1)[..., :8],
        "expanded batch": z[:1].expand(2, -1, -1, -1),
    }
    weights = {
        "channels last": weight.contiguous(memory_format=torch.channels_last),
        "in and out swapped": weight.transpose(0, 1).contiguous().transpose(0, 1),
    }
    with case.configured():
        for name, view in views.items():
            leaf, plain = view.detach().requires_grad_(), view.detach().contiguous().requires_grad_()
            out, expected = mixer(leaf, weight, backend=kernel), mixer(plain, weight, backend=kernel)
            out.sum().backward()  # the gradient is an expanded scalar
            expected.backward(torch.ones_like(expected))
            assert out.is_contiguous(), name
            assert torch.equal(out, expected), name
            assert torch.equal(leaf.grad, plain.grad), name
        for name, view in weights.items():
            leaf, plain = view.detach().requires_grad_(), view.detach().contiguous().requires_grad_()
            out, expected = mixer(z, leaf, backend=kernel), mixer(z, plain, backend=kernel)
            torch.testing.assert_close(out, expected, msg=name)
            out.sum().backward()
            expected.sum().backward()
            torch.testing.assert_close(leaf.grad, plain.grad, msg=name)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
@one_each
def test_batch_0(case: Case, backend: str) -> None:
    leaves = {name: t.float() for name, t in case.tensors().items()}
    leaves = {name: (t[:0] if name == "z" else t).requires_grad_() for name, t in leaves.items()}
    with case.configured():
        out = mixer(**leaves, backend=backend)
        out.sum().backward()
    assert out.shape == (0, *case.size[1:])
    assert all(torch.equal(leaf.grad, torch.zeros_like(leaf)) for leaf in leaves.values())


@pytest.mark.parametrize("kernel", KERNELS)
@one_each
def test_only_the_gradients_that_are_wanted(case: Case, kernel: str) -> None:
    tensors = {name: t.float() for name, t in case.tensors().items()}
    for name, tensor in tensors.items():
        leaf, grads = tensor.clone().requires_grad_(), []
        for backend in (kernel, "reference"):
            with case.configured():
                out = mixer(**{**tensors, name: leaf}, backend=backend)
            grads.append(torch.autograd.grad(out, leaf, uniform("grad", *out.shape).float())[0])
        torch.testing.assert_close(*grads, msg=lambda text, name=name: f"d{name}: {text}")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("map_dtype", [torch.float32, torch.bfloat16], ids=str)
@one_each
def test_under_autocast_the_dtypes_are_those_of_pytorch(case: Case, map_dtype: torch.dtype, kernel: str) -> None:
    results = []
    for backend in (kernel, "reference"):
        leaves = {name: t.float() for name, t in case.tensors().items()}
        leaves["z"] = leaves["z"].to(map_dtype)
        wanted = [leaf.requires_grad_() for leaf in leaves.values()]
        with torch.autocast(DEVICE.type, torch.bfloat16), case.configured():
            out = mixer(**leaves, backend=backend)
        results.append([out.detach(), *torch.autograd.grad(out, wanted, uniform("grad", *out.shape).to(out.dtype))])
    for actual, expected in zip(*results, strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual.double(), expected.double(), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("backend", ["auto", *KERNELS])
@one_each
def test_compile_sees_through_it(case: Case, backend: str) -> None:
    torch._dynamo.reset()  # all cases are one function to it, and it compiles one only so often
    with case.configured():
        check_compiles(mixer, case.tensors(), backend)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
@one_each
def test_meta_device(case: Case, backend: str) -> None:
    tensors = {name: t.to("meta", torch.bfloat16).requires_grad_() for name, t in case.tensors().items()}
    with case.configured():
        out = mixer(**tensors, backend=backend)
    assert (out.device.type, out.shape, out.dtype) == ("meta", case.size, torch.bfloat16)
    out.sum().backward()
    assert all((t.grad.shape, t.grad.dtype) == (t.shape, t.dtype) for t in tensors.values())


Z, W = torch.randn(1, 3, 5, 8), torch.ones(8, 8, 3, 3)
BAD = [
    ({"z": Z[0]}, ValueError, r"z must be \[B, H, W, C\] with H, W and C at least 1, got \[3, 5, 8\]"),
    ({"z": Z.long()}, TypeError, "z must be a floating-point tensor, got torch.int64"),
    ({"weight": None}, TypeError, "weight must be a torch.Tensor, got NoneType"),
    ({"weight": W[:4]}, ValueError, r"weight must be \[8, 8, 3, 3\] or \[8, 1, 3, 3\], got \[4, 8, 3, 3\]"),
    ({"weight": W[:, :2]}, ValueError, r"weight must be \[8, 8, 3, 3\] or \[8, 1, 3, 3\], got \[8, 2, 3, 3\]"),
    ({"weight": W[..., :1]}, ValueError, r"weight must be \[8, 8, 3, 3\] or \[8, 1, 3, 3\], got \[8, 8, 3, 1\]"),
    ({"weight": W.double()}, TypeError, "weight must be torch.float32, got torch.float64"),
    ({"weight": W.to("meta")}, ValueError, "weight must be on the device of the map, cpu, got meta"),
    ({"backend": "mps"}, ValueError, "backend must be one of auto, reference, native, triton, cuda, got 'mps'"),
]


@pytest.mark.parametrize(("changed", "error", "message"), BAD)
def test_bad_input_is_named(changed: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mixer(**{"z": Z, "weight": W, **changed})


@pytest.mark.parametrize("shape", [(6, 6, 3, 3), (6, 1, 3, 3)], ids=str)
def test_the_reference_is_served_to_vmap(shape: tuple[int, ...]) -> None:
    z, weights = uniform("z", 1, 4, 3, 6), uniform("weights", 2, *shape)
    found = torch.func.vmap(lambda weight: mixer(z, weight))(weights)
    for each, weight in zip(found, weights, strict=True):
        torch.testing.assert_close(each, mixer(z, weight))
    for layout in (torch.channels_last, torch.contiguous_format):
        weight = weights[0].contiguous(memory_format=layout)
        assert is_channels_last(weight) == weight.is_contiguous(memory_format=torch.channels_last)
