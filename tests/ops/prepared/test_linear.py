"""The prepared linear: the reference against its definition, and every kernel against the reference."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hifuse_fast import BackendError
from hifuse_fast.backends import tables
from hifuse_fast.backends.record import recording
from hifuse_fast.ops import prepare_linear
from hifuse_fast.ops.prepared.linear.bounds import STRASSEN
from hifuse_fast.testing import assert_within_rule
from tests.support.kernels import kernels, uniform
from tests.support.prepared import DTYPES, check_determinism, check_images_apart, check_parity, matrix, place

pytestmark = pytest.mark.gpu
KERNELS = kernels("prepare_linear", "native", "triton", "cuda")


@dataclass(frozen=True)
class Case:
    """A call, named by what it is there for."""

    name: str
    size: tuple[int, int, int]  # B, H, W of the maps
    channels: tuple[int, ...]
    columns: int
    options: dict[str, Any] = field(default_factory=dict)
    residual: bool = False

    def weights(self) -> dict[str, Tensor]:
        depth = sum(self.channels) * (4 if self.options.get("rows") == "patches" else 1)
        return {"weight": matrix("weight", self.columns, depth), "bias": uniform("bias", self.columns)}

    def maps(self) -> list[Tensor]:
        # Rows with a mean of their own: a norm that forgot it would show.
        return [uniform(f"map{i}", *self.size, c) + 0.5 * (i + 1) for i, c in enumerate(self.channels)]

    def out_size(self) -> tuple[int, ...]:
        half = 2 if self.options.get("pool") or self.options.get("rows") == "patches" else 1
        return self.size[0], self.size[1] // half, self.size[2] // half, self.columns

    def residual_map(self) -> Tensor | None:
        return uniform("residual", *self.out_size()) if self.residual else None


CASES = [
    Case("qkv of HiFuse", (2, 7, 7), (96,), 288, {"norm": "row"}),
    Case("attention output", (1, 14, 14), (96,), 96, {"activation": "gelu"}, residual=True),
    Case("three maps, normed", (1, 5, 7), (32, 32, 32), 32, {"norm": "row", "eps": 1e-6, "activation": "gelu"}),
    Case("maps of odd widths", (2, 3, 5), (7, 20, 1), 13, {"norm": "row", "activation": "gelu"}),
    Case("two maps", (1, 3, 3), (33, 12), 40),
    Case("pooled relu", (2, 6, 10), (19,), 45, {"activation": "relu", "pool": True}),
    Case("pooled, with all else", (1, 4, 2), (8, 9), 5, {"norm": "row", "activation": "gelu", "pool": True}, residual=True),
    Case("patch merging", (2, 6, 10), (13,), 26, {"rows": "patches", "norm": "row"}),
    Case("2x2 convolution", (1, 4, 14), (24,), 48, {"rows": "patches", "norm": "pixel", "eps": 1e-6}),
    Case("patches, nothing else", (1, 2, 6), (10,), 70, {"rows": "patches"}, residual=True),
    Case("one row, one column, one channel", (1, 1, 1), (1,), 1),
    Case("classifier", (3, 1, 1), (100,), 7, {"norm": "row", "eps": 1e-6}),
    Case("more rows than a block", (1, 37, 29), (40,), 33, {"norm": "row", "eps": 0.1}, residual=True),
    Case("a deep row", (1, 3, 3), (2310,), 8, {"norm": "row"}),
    Case("Strassen's product", (1, 5, 7), (416,), 64, {"norm": "row"}, residual=True),
    Case("Strassen's product of one row", (1, 1, 1), (384,), 128),
    Case("Strassen's product of three maps", (3, 13, 15), (140, 7, 301), 192, {"norm": "row", "activation": "gelu"}),
    Case("Strassen's product, pooled", (1, 6, 10), (800,), 64, {"activation": "relu", "pool": True}),
    Case("Strassen's product of patches", (2, 6, 6), (104,), 64, {"rows": "patches", "norm": "pixel"}),
]
named = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def norm(x: Tensor, eps: float) -> Tensor:
    mean = x.sum(-1, keepdim=True) / x.shape[-1]
    return (x - mean) / ((x - mean).square().sum(-1, keepdim=True) / x.shape[-1] + eps).sqrt()


def by_definition(case: Case) -> Tensor:
    """From the docstring's text, in float64."""
    o = {"rows": "pixels", "norm": None, "eps": 1e-5, "activation": "none", "pool": False, **case.options}
    weights, maps = case.weights(), case.maps()
    if o["rows"] == "patches":
        x = maps[0] if o["norm"] != "pixel" else norm(maps[0], o["eps"])
        rows = torch.cat([x[:, r::2, c::2] for r, c in ((0, 0), (1, 0), (0, 1), (1, 1))], -1)
    else:
        rows = torch.cat(maps, -1)
    rows = norm(rows, o["eps"]) if o["norm"] == "row" else rows
    y = torch.einsum("bhwk,nk->bhwn", rows, weights["weight"]) + weights["bias"]
    if o["activation"] == "gelu":
        y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
    if o["activation"] == "relu":
        y = y * (y > 0)
    if o["pool"]:
        y = (y[:, ::2, ::2] + y[:, 1::2, ::2] + y[:, ::2, 1::2] + y[:, 1::2, 1::2]) / 4
    residual = case.residual_map()
    return y if residual is None else residual + y


@named
def test_reference_is_the_definition(case: Case) -> None:
    op = prepare_linear(**case.weights(), **case.options, dtype=torch.float64, backend="reference")
    torch.testing.assert_close(op(*case.maps(), residual=case.residual_map()), by_definition(case))


@named
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_parity(case: Case, dtype: torch.dtype, kernel: str) -> None:
    if kernel == "cuda" and case.size == (3, 13, 15):
        pytest.skip("its product is one for all depths, and the emulation is slow")
    strassen = case.name.startswith("Strassen") and dtype == torch.float32 and kernel == "native"
    for algorithm, rule in (
        ("auto", partial(assert_within_rule, bound=STRASSEN) if strassen else assert_within_rule),
        ("direct", assert_within_rule),
    )[: 1 if kernel == "cuda" else 2]:
        check_parity(
            prepare_linear,
            case.weights(),
            case.maps(),
            dtype,
            kernel,
            options={**case.options, "algorithm": algorithm},
            residual=case.residual_map(),
            rule=rule,
        )


@pytest.mark.parametrize("kernel", kernels("prepare_linear", "native"))
def test_strassen_is_taken_for_deep_float32_and_direct_is_not_it(kernel: str) -> None:
    case = next(case for case in CASES if case.name == "Strassen's product")
    w, x = place(kernel, (case.weights(), case.maps()[0]), torch.float32)
    auto, direct = (
        prepare_linear(**w, norm="row", algorithm=each, dtype=torch.float32, backend=kernel) for each in ("auto", "direct")
    )
    assert auto.weight.numel() == 7 * 32 * 224  # half of 416, in whole chunks
    assert direct.weight.numel() == 64 * 416
    assert not torch.equal(auto(x), direct(x))
    torch.testing.assert_close(auto(x), direct(x))


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_batch_0(backend: str) -> None:
    for case in (CASES[0], CASES[5], CASES[7]):
        weights, maps = place(backend, (case.weights(), case.maps()), torch.float32)
        op = prepare_linear(**weights, **case.options, dtype=torch.float32, backend=backend)
        assert op(*(x[:0] for x in maps)).shape == (0, *case.out_size()[1:])


@pytest.mark.parametrize("kernel", kernels("prepare_linear", "native"))
def test_images_are_apart(kernel: str) -> None:
    """The last one has an odd number of rows, which Strassen's product takes in pairs."""
    for case in (CASES[12], CASES[16]):
        weights, maps = place(kernel, (case.weights(), case.maps()), torch.float32)
        op = prepare_linear(**weights, **case.options, dtype=torch.float32, backend=kernel)
        check_images_apart(op, *(torch.cat([x] * 3) if len(x) < 3 else x for x in maps))


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_same_bits_whatever_the_threads(kernel: str) -> None:
    for case in (CASES[12], CASES[16])[: 1 if kernel == "cuda" else 2]:  # of several blocks of rows
        weights, maps = place(kernel, (case.weights(), case.maps()), torch.float32)
        op = prepare_linear(**weights, **case.options, dtype=torch.float32, backend=kernel)
        check_determinism(op, *maps)


@pytest.mark.parametrize("kernel", kernels("prepare_linear", "native", "cuda"))
@pytest.mark.parametrize(("rows", "norm", "scale"), [("pixels", "row", 1), ("patches", "row", 4), ("patches", "pixel", 4)])
def test_nothing_is_left_of_equal_values(rows: str, norm: str, scale: int, kernel: str) -> None:
    """However large they are: the rounding of their mean, times 1 / sqrt(eps), would be seen."""
    for depth in (7, 100, 1999)[: 2 if kernel == "cuda" else 3]:
        weight, bias = place(kernel, (matrix("weight", 5, scale * depth), torch.zeros(5)), torch.float32)
        op = prepare_linear(weight, bias, rows=rows, norm=norm, eps=1e-6, dtype=torch.float32, backend=kernel)
        for value in (1e-3, 0.1, 1 / 3, 1000.1, 12345.678, 1e10 / 3, 1e20 / 3):
            x = torch.full((1, 2, 2, depth), value, device=weight.device)
            assert not op(x).any(), f"{depth} times {value}: {op(x).flatten()[0]}"


@pytest.mark.parametrize("kernel", kernels("prepare_linear", "triton"))
def test_few_results_have_tiles_of_their_own(kernel: str) -> None:
    """One kernel with small tiles, where the table has the vendor's product for many."""
    op = prepare_linear(matrix("weight", 1152, 384), torch.zeros(1152), norm="row", dtype=torch.bfloat16, backend=kernel)
    launched = {}
    for side in (28, 42):
        with recording("sm_90") as record, tables.lookups() as found:
            op(place(kernel, torch.ones(1, side, side, 384), torch.bfloat16))
        launched[found[0][1]] = [each.kernel.fn.__module__.split(".")[-2] for each in record.launches]
    assert launched == {"16-bit 384 1152 norm few": ["linear"], "16-bit 384 1152 norm": ["layer_norm"]}


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_no_gradient(backend: str) -> None:
    weight, bias, x = place(backend, (torch.randn(4, 8), torch.randn(4), torch.randn(1, 3, 3, 8)))
    op = prepare_linear(weight, bias, dtype=torch.float32, backend=backend)
    with pytest.raises(RuntimeError, match="a prepared op gives none"):
        op(x.requires_grad_())
    with torch.inference_mode():
        assert torch.equal(op(torch.ones_like(x)), op(torch.ones_like(x)))


def test_weights_are_copied_and_hidden() -> None:
    weight = torch.randn(4, 8, requires_grad=True)
    op = prepare_linear(weight, torch.zeros(4), dtype=torch.float32)
    x = torch.randn(1, 2, 2, 8)
    before = op(x)
    with torch.no_grad():
        weight.zero_()
    assert torch.equal(op(x), before)
    assert op.state_dict() == {}
    assert list(op.parameters()) == []


def test_dtype_and_device_stay() -> None:
    op = prepare_linear(torch.randn(4, 8), torch.zeros(4), dtype=torch.float32)
    assert op.to("cpu") is op
    for change in (op.bfloat16, op.double, lambda: op.to("meta")):
        with pytest.raises(TypeError, match="a prepared op keeps its dtype, device and layout"):
            change()
    assert op(torch.randn(1, 2, 2, 8)).dtype == torch.float32


OPTIONS = [
    {"rows": rows, "norm": norm, "activation": activation, "pool": pool}
    for rows, norms, pools in (("pixels", (None, "row"), (False, True)), ("patches", (None, "row", "pixel"), (False,)))
    for norm, activation, pool in itertools.product(norms, ("none", "gelu", "relu"), pools)
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_combination_of_options(options: dict[str, Any], kernel: str) -> None:
    case = Case("", (2, 4, 6), (9,), 7, options, residual=True)
    check_parity(
        prepare_linear, case.weights(), case.maps(), torch.float32, kernel, options=options, residual=case.residual_map()
    )


BAD = [
    ({"weight": torch.randn(4)}, ValueError, r"weight must be \[N, K\], got \[4\]"),
    ({"weight": torch.randn(0, 8)}, ValueError, r"weight must be \[N, K\] = \[0, 8\]"),
    ({"weight": torch.ones(4, 8, dtype=torch.int64)}, TypeError, "weight must be a floating-point tensor, got torch.int64"),
    ({"algorithm": "strassen"}, ValueError, "algorithm must be one of auto, direct, got 'strassen'"),
    ({"weight": None}, TypeError, "weight must be a torch.Tensor, got NoneType"),
    ({"bias": torch.randn(5)}, ValueError, r"bias must be \[N\] = \[4\], got \[5\]"),
    ({"bias": torch.randn(4, device="meta")}, ValueError, "bias must be on the device of the other weights, cpu, got meta"),
    ({"rows": "rows"}, ValueError, "rows must be one of pixels, patches, got 'rows'"),
    ({"norm": "layer"}, ValueError, "norm must be one of row, pixel, got 'layer'"),
    ({"norm": "pixel"}, ValueError, "norm='pixel' is for rows='patches'"),
    ({"rows": "patches", "pool": True}, ValueError, "pool is for rows='pixels'"),
    ({"rows": "patches", "weight": torch.randn(4, 6)}, ValueError, r"weight must be \[N, 4 C\] with rows='patches'"),
    ({"pool": 1}, TypeError, "pool must be True or False, got 1"),
    ({"eps": 0.0}, ValueError, "eps must be a positive number, got 0.0"),
    ({"eps": math.nan}, ValueError, "eps must be a positive number, got nan"),
    ({"activation": "silu"}, ValueError, "activation must be one of none, gelu, relu, got 'silu'"),
    (
        {"dtype": torch.int8},
        TypeError,
        "dtype must be one of torch.float32, torch.bfloat16, torch.float16, torch.float64, got torch.int8",
    ),
    ({"dtype": "float32"}, TypeError, "dtype must be one of .*, got 'float32'"),
    ({"backend": "mps"}, ValueError, "backend must be one of auto, reference, native, triton, cuda, got 'mps'"),
    ({"backend": "triton", "dtype": torch.float64}, BackendError, "'triton' cannot serve prepare_linear"),
    ({"backend": "native", "dtype": torch.float64}, BackendError, "'native' cannot serve prepare_linear"),
    ({"backend": "native", "dtype": torch.float16}, BackendError, "'native' cannot serve prepare_linear"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[f"{row[0]!s:.30}" for row in BAD])
def test_bad_preparation_is_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = place(arguments.get("backend", "native"), {"weight": torch.randn(4, 8), "bias": torch.randn(4)})
    good = {**given, "dtype": torch.float32}
    with pytest.raises(error, match=message):
        prepare_linear(**{**good, **arguments})


X = torch.randn(1, 4, 4, 8)
BAD_CALLS = [
    ({}, [], {}, "maps must be 1 to 3 maps, got 0"),
    ({}, [X] * 4, {}, "maps must be 1 to 3 maps, got 4"),
    ({}, [X[0]], {}, r"maps\[0\] must be \[B, H, W, 8\] with H and W at least 1, got \[4, 4, 8\]"),
    ({}, [X[..., :7].contiguous()], {}, r"maps\[0\] must be \[B, H, W, 8\]"),
    ({}, [torch.randn(1, 4, 4, 9)], {}, r"maps\[0\] must be \[B, H, W, 8\]"),
    ({}, [X[..., :3].contiguous(), X[..., :4].contiguous()], {}, r"maps must have 8 channels together, got \[3, 4\]"),
    ({}, [X[..., :4].contiguous(), X[:, :3, :, :4].contiguous()], {}, r"maps\[1\] must be \[1, 4, 4, C\]"),
    ({}, [X.double()], {}, r"maps\[0\] must be torch.float32 as the op was prepared for, got torch.float64"),
    ({}, [X.transpose(1, 2)], {}, r"maps\[0\] must be contiguous"),
    ({}, [X.to("meta")], {}, r"maps\[0\] must be on the op's device, (cpu|cuda:0), got meta"),
    ({}, [[1.0]], {}, r"maps\[0\] must be a torch.Tensor, got list"),
    ({}, [X], {"residual": torch.randn(1, 4, 4, 5)}, r"residual must be \[1, 4, 4, 4\]"),
    ({}, [X], {"residual": torch.randn(1, 4, 4, 4).double()}, "residual must be torch.float32"),
    ({}, [X], {"out": torch.empty(1, 4, 3, 4)}, r"out must be \[1, 4, 4, 4\]"),
    ({}, [X], {"out": torch.empty(1, 4, 4, 4, dtype=torch.bfloat16)}, "out must be torch.float32"),
    ({"pool": True}, [X[:, :3].contiguous()], {}, r"maps\[0\] must have even H and W, got \[1, 3, 4, 8\]"),
    ({"rows": "patches"}, [torch.randn(1, 4, 3, 2)], {}, r"maps\[0\] must have even H and W"),
    ({"rows": "patches"}, [torch.randn(1, 4, 4, 1)] * 2, {}, "maps must be 1 map, got 2"),
]


@pytest.mark.parametrize(("options", "maps", "named", "message"), BAD_CALLS, ids=[row[3][:40] for row in BAD_CALLS])
@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_bad_calls_are_refused(
    options: dict[str, Any], maps: list[Any], named: dict[str, Any], message: str, backend: str
) -> None:
    weight, bias = place(backend, (torch.randn(4, 8), torch.randn(4)))
    op = prepare_linear(weight, bias, **options, dtype=torch.float32, backend=backend)
    with pytest.raises((TypeError, ValueError), match=message):
        op(*place(backend, maps), **place(backend, named))
