"""The linear with gradients: the reference against its definition, the kernels against the reference."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import hifuse_fast
from hifuse_fast.backends import select, tables
from hifuse_fast.backends.native import library
from hifuse_fast.ops import linear
from hifuse_fast.testing import relative_error
from tests.support.functional import DTYPES, check_compiles, check_parity
from tests.support.kernels import DEVICE, kernels, uniform

pytestmark = pytest.mark.gpu
KERNELS = kernels("linear", "triton", "cuda")
TILES = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32, "BLOCK_S": 32, "num_warps": 4, "num_stages": 2}
FEW_PROGRAMS = {
    "programs": 2,
    "BLOCK_R": 8,
    "BLOCK_N": 16,
    "num_warps": 4,
}  # of the backward: each takes several blocks of rows
WAYS = {"fused": {"fused": 1, **TILES}, "vendor": {"fused": 0}}


@dataclass(frozen=True)
class Case:
    """A call, named by what it is there for; `given`: which of bias, norm and residual there are."""

    name: str
    size: tuple[int, int, int, int]  # B, H, W, C
    columns: int
    given: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor | None]:
        batch, height, width, depth = self.size
        if self.options.get("rows") == "patches":
            height, width, depth = (height + 1) // 2, (width + 1) // 2, 4 * depth
        made = {
            "bias": uniform("bias", self.columns),
            "norm_weight": 1 + 0.5 * uniform("scale", depth),
            "norm_bias": uniform("shift", depth),
            "residual": uniform("residual", batch, height, width, self.columns),
        }
        wanted = {name: tensor if name.split("_")[0] in self.given.split() else None for name, tensor in made.items()}
        # Rows with a mean of their own: a norm that forgot it would show.
        x, weight = 0.5 + uniform("x", *self.size), uniform("weight", self.columns, depth, scale=(3 / depth) ** 0.5)
        return {"x": x, "weight": weight, **wanted}


GELU = {"activation": "gelu"}
CASES = [
    Case("qkv", (2, 5, 7, 33), 70, "bias norm"),
    Case("fc1", (1, 6, 6, 32), 32, "bias residual", GELU),
    Case("pwconv", (2, 3, 7, 17), 21, "bias norm residual", {**GELU, "eps": 1e-6}),
    Case("patch merging", (1, 4, 6, 9), 19, "norm", {"rows": "patches"}),
    Case("patch merging of an odd map", (2, 5, 3, 16), 40, "norm", {"rows": "patches"}),
    Case("patches with all else", (1, 3, 3, 5), 6, "bias norm residual", {**GELU, "rows": "patches"}),
    Case("patches without a norm", (1, 5, 2, 5), 6, "bias", {**GELU, "rows": "patches"}),
    Case("GELU alone", (1, 3, 5, 20), 7, "", GELU),
    Case("residual alone", (1, 3, 5, 7), 20, "residual"),
    Case("proj", (1, 3, 5, 20), 12, "bias"),
    Case("one of everything", (1, 1, 1, 1), 1, "bias norm residual", GELU),
]
named = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
ways = pytest.mark.parametrize("way", WAYS)


def by_definition(x: Tensor, weight: Tensor, bias: Any, norm_weight: Any, norm_bias: Any, residual: Any, **o: Any) -> Tensor:
    """Row by row, from the text."""
    batch, height, width, _ = x.shape
    step, pixels = (2, [(0, 0), (1, 0), (0, 1), (1, 1)]) if o.get("rows") == "patches" else (1, [(0, 0)])
    out = x.new_empty(batch, -(-height // step), -(-width // step), len(weight))
    for b, i, j in itertools.product(*map(range, out.shape[:3])):
        places = [(i * step + di, j * step + dj) for di, dj in pixels]
        row = torch.cat([x[b, p, q] if p < height and q < width else torch.zeros_like(x[0, 0, 0]) for p, q in places])
        if norm_weight is not None:
            centred = row - row.sum() / len(row)
            row = centred / (centred.square().sum() / len(row) + o.get("eps", 1e-5)).sqrt() * norm_weight + norm_bias
        z = (weight * row).sum(1)
        z = z if bias is None else z + bias
        z = z * 0.5 * (1 + torch.erf(z / math.sqrt(2))) if o.get("activation") == "gelu" else z
        out[b, i, j] = z if residual is None else residual[b, i, j] + z
    return out


@named
def test_reference_is_the_definition(case: Case) -> None:
    tensors = case.tensors()
    expected = by_definition(**tensors, **case.options)
    assert relative_error(linear(**tensors, **case.options, backend="reference"), expected) < 1e-12


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@ways
@named
def test_kernel_obeys_the_rule(case: Case, way: str, dtype: torch.dtype, kernel: str) -> None:
    with tables.override("linear_forward", WAYS[way]), tables.override("linear_backward", FEW_PROGRAMS):
        # A row of one is its own mean: what is zero exactly is a difference of numbers times 1 / sqrt(eps).
        cancelled = {"dx": 316.0} if case.size[-1] == 1 else {}
        check_parity(partial(linear, **case.options), case.tensors(), dtype, kernel, cancelled)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_configured_tiles_obey_the_rule(kernel: str) -> None:
    """A shape of HiFuse, as the table has it, with a last tile that is not full."""
    case = Case("pwconv of stage 1", (1, 11, 13, 96), 96, "bias norm residual", GELU)
    check_parity(partial(linear, **case.options), case.tensors(), torch.bfloat16, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@ways
def test_rows_far_from_zero_keep_their_variance(way: str, kernel: str) -> None:
    """The mean is subtracted before squaring: a variance of 1/3 beside a mean of 1000 is no difference of large numbers.

    A bound of its own: float32 rounds the mean by up to 3e-5, 5e-5 of the deviation, the same way for a whole row. The rule of
    twice PyTorch's error would test whose mean happens to round better; E[x^2] - mean^2 is off by more than 1e-2.
    """
    tensors = Case("far", (1, 3, 3, 72), 9, "norm").tensors()
    tensors["x"] = (1000 + tensors["x"]).float().double()
    exact = linear(**tensors, backend="reference")
    with tables.override("linear_forward", WAYS[way]):
        out = linear(**{name: None if t is None else t.float() for name, t in tensors.items()}, backend=kernel)
    assert relative_error(out, exact) < 5e-4


@pytest.mark.parametrize("kernel", KERNELS)
@ways
@pytest.mark.parametrize("rows", ["pixels", "patches"])
def test_strides(rows: str, way: str, kernel: str) -> None:
    case = Case("strided", (2, 4, 6, 8), 8, "bias norm residual", {**GELU, "rows": rows})
    tensors = {name: tensor.float() for name, tensor in case.tensors().items()}
    x, contiguous = tensors.pop("x"), dict(tensors)
    tensors["residual"] = tensors["residual"].transpose(1, 2).contiguous().transpose(1, 2)
    for name in ("bias", "norm_weight", "norm_bias"):
        tensors[name] = torch.stack([tensors[name], torch.full_like(tensors[name], torch.nan)], 1)[:, 0]
    views = {
        "NCHW memory": x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "W and H swapped": x.transpose(1, 2).contiguous().transpose(1, 2),
        "slice of channels": torch.cat([x, x], -1)[..., :8],
        "every other row": torch.stack([x, x], 2).flatten(1, 2)[:, ::2],
        "expanded batch": x[:1].expand(2, -1, -1, -1),
    }
    for name, view in views.items():
        leaf, plain = view.detach().requires_grad_(), view.detach().contiguous().requires_grad_()
        with tables.override("linear_forward", WAYS[way]):
            out = linear(leaf, **tensors, **case.options, backend=kernel)
            expected = linear(plain, **contiguous, **case.options, backend=kernel)
        out.sum().backward()  # the gradient is an expanded scalar
        expected.backward(torch.ones_like(expected))
        assert out.is_contiguous(), name
        if way == "fused":
            assert torch.equal(out, expected), name
            assert torch.equal(leaf.grad, plain.grad), name
        else:  # a GPU's library takes another kernel for another layout
            torch.testing.assert_close(out, expected, msg=name)
            torch.testing.assert_close(leaf.grad, plain.grad, msg=name)
    tensors["weight"] = tensors["weight"].t().contiguous().t()  # whose product the vendor may add up in another order
    with tables.override("linear_forward", WAYS[way]):
        torch.testing.assert_close(linear(plain, **tensors, **case.options, backend=kernel), expected)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
@ways
def test_batch_0(way: str, backend: str) -> None:
    for case in (CASES[2], CASES[5], CASES[9]):
        leaves = {name: t.float().requires_grad_() for name, t in case.tensors().items() if t is not None}
        empty = {name: leaves[name][:0].detach().requires_grad_() for name in ("x", "residual") if name in leaves}
        with tables.override("linear_forward", WAYS[way]):
            out = linear(**{**leaves, **empty}, **case.options, backend=backend)
        assert out.shape == (0, *out.shape[1:3], case.columns)
        assert out.shape[1:] == linear(**leaves, **case.options, backend="reference").shape[1:]
        out.sum().backward()
        for name, leaf in {**leaves, **empty}.items():
            assert torch.equal(leaf.grad, torch.zeros_like(leaf)), name


@pytest.mark.parametrize("kernel", KERNELS)
@named
def test_only_the_gradients_that_are_wanted(case: Case, kernel: str) -> None:
    """Each alone: what is left out of the backward is not what another gradient needs."""
    tensors = {name: None if t is None else t.float() for name, t in case.tensors().items()}
    for name in [name for name, tensor in tensors.items() if tensor is not None]:
        leaf = tensors[name].clone().requires_grad_()
        grads = []
        for backend in (kernel, "reference"):
            out = linear(**{**tensors, name: leaf}, **case.options, backend=backend)
            grads.append(torch.autograd.grad(out, leaf, uniform("grad", *out.shape).float())[0])
        torch.testing.assert_close(*grads, msg=lambda text, name=name: f"d{name}: {text}")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("map_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("residual_dtype", [None, torch.float32, torch.bfloat16], ids=str)
@ways
def test_under_autocast_the_dtypes_are_those_of_pytorch(
    way: str, residual_dtype: torch.dtype | None, map_dtype: torch.dtype, dtype: torch.dtype, kernel: str
) -> None:
    case = Case("autocast", (1, 3, 4, 12), 12, "bias norm residual", GELU)
    results = []
    for backend in (kernel, "reference"):
        leaves = {name: t.float() for name, t in case.tensors().items()}
        leaves["x"] = leaves["x"].to(map_dtype)
        leaves["residual"] = None if residual_dtype is None else leaves["residual"].to(residual_dtype)
        wanted = [leaf.requires_grad_() for leaf in leaves.values() if leaf is not None]
        with torch.autocast(DEVICE.type, dtype), tables.override("linear_forward", WAYS[way]):
            out = linear(**leaves, **case.options, backend=backend)
        results.append([out.detach(), *torch.autograd.grad(out, wanted, uniform("grad", *out.shape).to(out.dtype))])
    for actual, expected in zip(*results, strict=True):
        assert actual.dtype == expected.dtype
        torch.testing.assert_close(actual.double(), expected.double(), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("backend", ["auto", *KERNELS])
@pytest.mark.parametrize("case", [CASES[2], CASES[4]], ids=lambda case: case.name)
@ways
def test_compile_sees_through_it(way: str, case: Case, backend: str) -> None:
    torch._dynamo.reset()  # all cases are one function to it, and it compiles one only so often
    with tables.override("linear_forward", WAYS[way]):
        check_compiles(partial(linear, **case.options), case.tensors(), backend)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
@ways
def test_meta_device(way: str, backend: str) -> None:
    tensors = {name: t.to("meta", torch.bfloat16).requires_grad_() for name, t in CASES[5].tensors().items()}
    tensors["residual"] = tensors["residual"].detach().float().requires_grad_()
    with tables.override("linear_forward", WAYS[way]):
        out = linear(**tensors, **CASES[5].options, backend=backend)
    assert (out.device.type, out.shape, out.dtype) == ("meta", (1, 2, 2, 6), torch.float32)
    out.sum().backward()
    assert all((t.grad.shape, t.grad.dtype) == (t.shape, t.dtype) for t in tensors.values())


def test_what_serves_which_form() -> None:
    """The function has no native kernel, the prepared op has; a function without a prepared op does not answer for one."""
    call = {"device": torch.device("cpu"), "dtype": torch.float32}
    expected = library.why_missing or "there is no native kernel for it yet"
    assert select.why_not("linear", "native", **call) == expected
    assert select.select("linear", "auto", **call) is None
    assert {"linear", "prepare_linear", "window_attention", "prepare_mlp"} <= hifuse_fast.info().ops.keys()


X, ONE = torch.randn(1, 3, 5, 8), torch.ones(8)
BAD = [
    ({"x": X[0]}, ValueError, r"x must be \[B, H, W, C\] with H, W and C at least 1, got \[3, 5, 8\]"),
    ({"x": X.long()}, TypeError, "x must be a floating-point tensor, got torch.int64"),
    ({"x": X.double()}, TypeError, "weight must be torch.float64, got torch.float32"),
    ({"weight": None}, TypeError, "weight must be a torch.Tensor, got NoneType"),
    ({"weight": ONE}, ValueError, r"weight must be \[N, 8\] with rows='pixels', got \[8\]"),
    ({"weight": torch.ones(0, 8)}, ValueError, r"weight must be \[N, 8\] with rows='pixels', got \[0, 8\]"),
    ({"rows": "patches"}, ValueError, r"weight must be \[N, 32\] with rows='patches', got \[4, 8\]"),
    ({"weight": torch.ones(4, 8).bfloat16()}, TypeError, "weight must be torch.float32, got torch.bfloat16"),
    ({"weight": torch.ones(4, 8, device="meta")}, ValueError, "weight must be on the device of the map, cpu, got meta"),
    ({"bias": ONE}, ValueError, r"bias must be \[4\], got \[8\]"),
    ({"bias": ONE[:4].half()}, TypeError, "bias must be torch.float32, got torch.float16"),
    ({"norm_weight": ONE}, ValueError, "norm_weight and norm_bias must be given both or neither"),
    ({"norm_bias": ONE}, ValueError, "norm_weight and norm_bias must be given both or neither"),
    ({"norm_weight": ONE[:4], "norm_bias": ONE}, ValueError, r"norm_weight must be \[8\], got \[4\]"),
    ({"norm_weight": ONE, "norm_bias": ONE.half()}, TypeError, "norm_bias must be torch.float32 like the map"),
    ({"residual": X}, ValueError, r"residual must be \[1, 3, 5, 4\], got \[1, 3, 5, 8\]"),
    ({"residual": X[..., :4].half()}, TypeError, "residual must be torch.float32 like the map, or float32, got torch.float16"),
    ({"eps": 0}, ValueError, "eps must be a positive number, got 0"),
    ({"rows": "tokens"}, ValueError, "rows must be one of pixels, patches, got 'tokens'"),
    ({"activation": "relu"}, ValueError, "activation must be one of none, gelu, got 'relu'"),
    ({"backend": "mps"}, ValueError, "backend must be one of auto, reference, native, triton, cuda, got 'mps'"),
    ({"backend": "native"}, hifuse_fast.BackendError, "backend 'native' cannot serve linear: "),
]


@pytest.mark.parametrize(("changed", "error", "message"), BAD)
def test_bad_input_is_named(changed: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        linear(**{"x": X, "weight": torch.ones(4, 8), **changed})
