"""Layer normalisation of pixels and patches: the reference against its definition, the kernels against the reference."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor

from hifuse_fast.ops import layer_norm
from hifuse_fast.testing import relative_error
from tests.support.functional import DTYPES, check_compiles, check_parity
from tests.support.kernels import DEVICE, kernels, uniform

pytestmark = pytest.mark.gpu
KERNELS = kernels("layer_norm", "triton", "cuda")
# B, H, W, C; rows
CASES = [
    ((2, 5, 7, 17), "pixels"),
    ((1, 4, 6, 96), "pixels"),
    ((3, 1, 1, 1), "pixels"),
    ((1, 1, 5, 800), "pixels"),  # of rows that several warps share
    ((1, 1, 2, 1601), "pixels"),
    ((2, 4, 6, 12), "patches"),
    ((1, 5, 7, 33), "patches"),  # padded both ways
    ((2, 1, 3, 8), "patches"),
]
named = pytest.mark.parametrize(("shape", "rows"), CASES, ids=str)


def make(shape: tuple[int, ...], rows: str) -> dict[str, Tensor | None]:
    width = shape[-1] * (4 if rows == "patches" else 1)
    return {"x": 0.5 + uniform("x", *shape), "weight": 1 + 0.5 * uniform("weight", width), "bias": uniform("bias", width)}


def by_definition(x: Tensor, weight: Tensor, bias: Tensor, eps: float, rows: str) -> Tensor:
    """Row by row, from the text."""
    batch, height, width, channels = x.shape
    step, pixels = (2, [(0, 0), (1, 0), (0, 1), (1, 1)]) if rows == "patches" else (1, [(0, 0)])
    out = x.new_empty(batch, -(-height // step), -(-width // step), channels * len(pixels))
    for b, y, z in itertools.product(*map(range, out.shape[:3])):
        places = [(y * step + dy, z * step + dx) for dy, dx in pixels]
        parts = [x[b, i, j] if i < height and j < width else torch.zeros_like(x[0, 0, 0]) for i, j in places]
        row = torch.cat(parts)
        centred = row - row.sum() / len(row)
        out[b, y, z] = centred / (centred.square().sum() / len(row) + eps).sqrt() * weight + bias
    return out


@named
def test_reference_is_the_definition(shape: tuple[int, ...], rows: str) -> None:
    tensors = make(shape, rows)
    expected = by_definition(*tensors.values(), eps=0.01, rows=rows)
    assert relative_error(layer_norm(**tensors, eps=0.01, rows=rows, backend="reference"), expected) < 1e-12


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@named
def test_kernel_obeys_the_rule(shape: tuple[int, ...], rows: str, dtype: torch.dtype, kernel: str) -> None:
    # A row of one is its own mean: what is zero exactly is a difference of numbers times 1 / sqrt(eps).
    cancelled = {"dx": 1e3} if shape[-1] == 1 else {}
    check_parity(partial(layer_norm, eps=1e-6, rows=rows), make(shape, rows), dtype, kernel, cancelled)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_far_from_zero_keep_their_variance(kernel: str) -> None:
    """The mean is subtracted before squaring: a variance of 1 beside a mean of 1000 is no difference of large numbers."""
    tensors = make((1, 3, 3, 64), "pixels")
    tensors["x"] = 1000 + tensors["x"]
    check_parity(layer_norm, tensors, torch.float32, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("rows", ["pixels", "patches"])
def test_strides(rows: str, kernel: str) -> None:
    x, weight, bias = make((2, 4, 6, 8), rows).values()
    x, weight, bias = x.float(), weight.float(), bias.float()
    views = {
        "NCHW memory": x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "W and H swapped": x.transpose(1, 2).contiguous().transpose(1, 2),
        "slice of channels": torch.cat([x, x], -1)[..., :8],
        "every other row": torch.stack([x, x], 2).flatten(1, 2)[:, ::2],
        "expanded batch": x[:1].expand(2, -1, -1, -1),
    }
    for name, view in views.items():
        leaf, plain = view.detach().requires_grad_(), view.detach().contiguous().requires_grad_()
        out, expected = (layer_norm(t, weight, bias, rows=rows, backend=kernel) for t in (leaf, plain))
        out.sum().backward()  # the gradient is an expanded scalar
        expected.backward(torch.ones_like(expected))
        assert out.is_contiguous(), name
        assert torch.equal(out, expected), name
        assert torch.equal(leaf.grad, plain.grad), name


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_batch_0(backend: str) -> None:
    weight = torch.ones(32, device=DEVICE, requires_grad=True)
    x = torch.empty(0, 5, 4, 8, device=DEVICE, requires_grad=True)
    out = layer_norm(x, weight, torch.zeros(32, device=DEVICE), rows="patches", backend=backend)
    assert out.shape == (0, 3, 2, 32)
    out.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("backend", ["auto", "reference", *KERNELS])
@pytest.mark.parametrize("rows", ["pixels", "patches"])
def test_compile_sees_through_it(rows: str, backend: str) -> None:
    check_compiles(partial(layer_norm, rows=rows), make((2, 3, 4, 8), rows), backend)


@pytest.mark.parametrize("kernel", KERNELS)
def test_under_autocast_the_dtypes_are_those_of_pytorch(kernel: str) -> None:
    x, weight, bias = (t.float() for t in make((1, 3, 4, 8), "pixels").values())
    leaves = [x.bfloat16().requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    with torch.autocast(DEVICE.type, torch.bfloat16):
        out, expected = (layer_norm(*leaves, backend=backend) for backend in (kernel, "reference"))
    out.sum().backward()
    assert out.dtype == expected.dtype
    assert [leaf.grad.dtype for leaf in leaves] == [torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_meta_device(backend: str) -> None:
    x = torch.empty(2, 9, 8, 16, device="meta", dtype=torch.bfloat16)
    parameters = torch.empty(2, 64, device="meta")
    out = layer_norm(x, *parameters, rows="patches", backend=backend)
    assert (out.device.type, out.shape, out.dtype) == ("meta", (2, 5, 4, 64), torch.bfloat16)


X, ONE = torch.randn(1, 3, 5, 8), torch.ones(8)
BAD = [
    ({"x": X[0]}, ValueError, r"x must be \[B, H, W, C\] with H, W and C at least 1, got \[3, 5, 8\]"),
    ({"x": X[:, :0]}, ValueError, r"x must be \[B, H, W, C\] .* got \[1, 0, 5, 8\]"),
    ({"x": X.long()}, TypeError, "x must be a floating-point tensor, got torch.int64"),
    ({"x": None}, TypeError, "x must be a torch.Tensor, got NoneType"),
    ({"weight": ONE[:7]}, ValueError, r"weight must be \[8\], got \[7\]"),
    ({"rows": "patches"}, ValueError, r"weight must be \[32\], got \[8\]"),
    ({"bias": ONE.double()}, TypeError, "bias must be torch.float32 like the map, or float32, got torch.float64"),
    ({"bias": ONE.to("meta")}, ValueError, "bias must be on the device of the map, cpu, got meta"),
    ({"eps": 0}, ValueError, "eps must be a positive number, got 0"),
    ({"rows": "tokens"}, ValueError, "rows must be one of pixels, patches, got 'tokens'"),
    ({"backend": "mps"}, ValueError, "backend must be one of auto, reference, native, triton, cuda, got 'mps'"),
]


@pytest.mark.parametrize(("changed", "error", "message"), BAD)
def test_bad_input_is_named(changed: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        layer_norm(**{"x": X, "weight": ONE, "bias": ONE, **changed})
