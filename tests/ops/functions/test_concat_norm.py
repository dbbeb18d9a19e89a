"""Gates, concatenation and layer normalisation: the reference against its definition, the kernels against the reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hifuse_fast.ops import concat_norm
from hifuse_fast.testing import relative_error
from tests.support.functional import DTYPES, check_compiles, check_parity
from tests.support.kernels import DEVICE, kernels, uniform

pytestmark = pytest.mark.gpu
KERNELS = kernels("concat_norm", "triton", "cuda")
# B, H, W, C; the kind of each map's gate
CASES = [
    ((2, 5, 3, 17), ("channel", "pixel", None)),  # as HFF has it
    ((1, 4, 4, 96), (None, None, None)),
    ((3, 2, 3, 12), (None, None)),
    ((2, 1, 1, 8), ("pixel", "channel")),
    ((2, 3, 2, 1), ("channel", "channel", "pixel")),  # one channel: a gate of channels has the last side of one of pixels
    ((1, 9, 7, 33), ("pixel", None, "channel")),
    ((2, 10, 11, 64), ("channel", "pixel", None)),  # images of several shares
    ((1, 2, 1, 300), ("pixel", "channel", None)),  # rows that several warps share
]
named = pytest.mark.parametrize(("shape", "kinds"), CASES, ids=str)


def make(shape: tuple[int, ...], kinds: tuple[str | None, ...]) -> dict[str, Tensor | None]:
    batch, height, width, channels = shape
    sides = {"pixel": (batch, height, width, 1), "channel": (batch, 1, 1, channels)}
    tensors: dict[str, Tensor | None] = {f"map{i}": 0.3 + uniform(f"map{i}", *shape) for i in range(len(kinds))}
    for i, kind in enumerate(kinds):
        tensors[f"gate{i}"] = None if kind is None else 0.7 + 0.5 * uniform(f"gate{i}", *sides[kind])
    size = len(kinds) * channels
    return tensors | {"weight": 1 + 0.5 * uniform("weight", size), "bias": uniform("bias", size)}


def call_of(count: int, eps: float = 1e-6) -> Callable[..., Tensor]:
    """The op over tensors by name, as the checks call it."""

    def call(weight: Tensor, bias: Tensor, backend: str, **named: Tensor | None) -> Tensor:
        maps, gates = ([named[f"{kind}{i}"] for i in range(count)] for kind in ("map", "gate"))
        return concat_norm(*maps, weight=weight, bias=bias, gates=gates, eps=eps, backend=backend)

    return call


@named
def test_reference_is_the_definition(shape: tuple[int, ...], kinds: tuple[str | None, ...]) -> None:
    tensors, eps = make(shape, kinds), 0.01
    out = call_of(len(kinds), eps)(**tensors, backend="reference")
    for b, y, x in itertools.product(*map(range, shape[:3])):
        parts = []
        for i, kind in enumerate(kinds):
            gate = tensors[f"gate{i}"]
            factor = 1.0 if kind is None else gate[b, 0, 0] if kind == "channel" else gate[b, y, x, 0]
            parts.append(tensors[f"map{i}"][b, y, x] * factor)
        row = torch.cat(parts)
        centred = row - row.sum() / len(row)
        row = centred / (centred.square().sum() / len(row) + eps).sqrt() * tensors["weight"] + tensors["bias"]
        assert relative_error(out[b, y, x], row) < 1e-12


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@named
def test_kernel_obeys_the_rule(shape: tuple[int, ...], kinds: tuple[str | None, ...], dtype: torch.dtype, kernel: str) -> None:
    check_parity(call_of(len(kinds)), make(shape, kinds), dtype, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_maps_of_any_strides(kernel: str) -> None:
    tensors = {name: None if t is None else t.float() for name, t in make((2, 4, 6, 8), ("channel", "pixel", None)).items()}
    expected = call_of(3)(**tensors, backend=kernel)
    tensors["map0"] = tensors["map0"].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    tensors["gate0"] = tensors["gate0"].transpose(0, 3).contiguous().transpose(0, 3)
    assert torch.equal(call_of(3)(**tensors, backend=kernel), expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_dtypes_are_promoted_as_in_pytorch(kernel: str) -> None:
    tensors = {name: None if t is None else t.bfloat16() for name, t in make((1, 2, 3, 8), ("channel", None)).items()}
    for promoted in ("map1", "gate0"):
        mixed = {name: t.float() if name == promoted else t for name, t in tensors.items() if t is not None}
        mixed = {"gate1": None, **mixed, "weight": mixed["weight"].float(), "bias": mixed["bias"].float()}
        leaves = {name: None if t is None else t.detach().requires_grad_() for name, t in mixed.items()}
        out, expected = (call_of(2)(**leaves, backend=backend) for backend in (kernel, "reference"))
        out.sum().backward()
        assert out.dtype == expected.dtype == torch.float32
        assert all(t.grad.dtype == t.dtype for t in leaves.values() if t is not None)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_batch_0(backend: str) -> None:
    weight = torch.ones(16, device=DEVICE, requires_grad=True)
    x, gate = torch.empty(0, 5, 4, 8, device=DEVICE), torch.empty(0, 1, 1, 8, device=DEVICE, requires_grad=True)
    out = concat_norm(x, x, weight=weight, bias=torch.zeros(16, device=DEVICE), gates=[gate, None], backend=backend)
    assert out.shape == (0, 5, 4, 16)
    out.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert gate.grad.shape == gate.shape


@pytest.mark.parametrize("backend", ["auto", "reference", *KERNELS])
def test_compile_sees_through_it(backend: str) -> None:
    check_compiles(call_of(3), make((2, 3, 4, 8), ("channel", "pixel", None)), backend)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_meta_device(backend: str) -> None:
    x = torch.empty(2, 9, 8, 16, device="meta", dtype=torch.bfloat16)
    out = concat_norm(x, x, x, weight=torch.empty(48, device="meta"), bias=torch.empty(48, device="meta"), backend=backend)
    assert (out.device.type, out.shape, out.dtype) == ("meta", (2, 9, 8, 48), torch.bfloat16)


X, ONE = torch.randn(1, 3, 5, 8), torch.ones(16)
BAD = [
    ([X], {}, ValueError, "maps must be 2 or 3, got 1"),
    ([X, X[..., :7]], {}, ValueError, r"maps\[1\] must be \[1, 3, 5, 8\] like the first, got \[1, 3, 5, 7\]"),
    ([X, X.long()], {}, TypeError, r"maps\[1\] must be a floating-point tensor, got torch.int64"),
    ([X, X.to("meta")], {}, ValueError, r"maps\[1\] must be on the device of the first, cpu, got meta"),
    ([X, X], {"gates": [None]}, ValueError, "gates must be one for each of the 2 maps, or None, got 1"),
    ([X, X], {"gates": [X, None]}, ValueError, r"gates\[0\] must be \[1, 3, 5, 1\] or \[1, 1, 1, 8\], got \[1, 3, 5, 8\]"),
    ([X, X], {"gates": [None, 1.0]}, TypeError, r"gates\[1\] must be a floating-point tensor or None, got float"),
    ([X, X, X], {}, ValueError, r"weight must be \[24\], got \[16\]"),
    ([X, X], {"bias": ONE.double()}, TypeError, "bias must be torch.float32 like the map, or float32, got torch.float64"),
    ([X, X], {"eps": -1.0}, ValueError, "eps must be a positive number, got -1.0"),
]


@pytest.mark.parametrize(("maps", "changed", "error", "message"), BAD)
def test_bad_input_is_named(maps: list[Tensor], changed: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        concat_norm(*maps, **{"weight": ONE, "bias": ONE, **changed})
