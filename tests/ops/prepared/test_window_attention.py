"""The prepared window attention: the function on the same values, and every kernel against the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from hifuse_fast import BackendError
from hifuse_fast.ops import prepare_window_attention, window_attention
from hifuse_fast.ops.prepared.base import PreparedOp
from tests.support.kernels import kernels, uniform
from tests.support.prepared import DTYPES, check_determinism, check_images_apart, check_parity, place

pytestmark = pytest.mark.gpu
KERNELS = kernels("prepare_window_attention", "native", "triton", "cuda")


@dataclass(frozen=True)
class Case:
    """A call, named by what it is there for."""

    name: str
    shape: tuple[int, int, int]  # B, H, W
    num_heads: int
    head_dim: int
    window_size: int
    shift_size: int = 0
    scale: float | None = None
    bias: bool = True

    @property
    def options(self) -> dict[str, Any]:
        names = ("num_heads", "head_dim", "window_size", "shift_size", "scale")
        return {name: getattr(self, name) for name in names}

    @property
    def weights(self) -> dict[str, Tensor]:
        table = {"bias_table": uniform("table", (2 * self.window_size - 1) ** 2, self.num_heads)}
        return table | ({"qkv_bias": uniform("bias", 3 * self.num_heads * self.head_dim)} if self.bias else {})

    @property
    def qkv(self) -> Tensor:
        return uniform("qkv", *self.shape, 3 * self.num_heads * self.head_dim)


CASES = [
    Case("one shifted window, as stage 4", (2, 7, 7), 1, 32, 7, shift_size=3),
    Case("padded both ways", (2, 6, 9), 3, 16, 4, shift_size=1, scale=0.3),
    Case("padding without a bias", (1, 5, 3), 2, 8, 4, bias=False),
    Case("window of one token", (1, 3, 5), 2, 16, 1),
    Case("odd everything", (2, 6, 9), 3, 17, 4, shift_size=1, scale=0.3),
]
SHIFTED = CASES[1]


def named(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def prepared(kernel: str, case: Case = SHIFTED) -> PreparedOp:
    weights = place(kernel, case.weights, torch.float32)
    return prepare_window_attention(**weights, **case.options, dtype=torch.float32, backend=kernel)


@named(CASES)
def test_the_reference_is_the_function(case: Case) -> None:
    op = prepare_window_attention(**case.weights, **case.options, dtype=torch.float64, backend="reference")
    options = {name: value for name, value in case.options.items() if name != "head_dim"}
    weights = case.weights
    expected = window_attention(case.qkv, weights.pop("bias_table"), **weights, **options, backend="reference")
    assert torch.equal(op(case.qkv), expected)


@named(CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_parity(case: Case, dtype: torch.dtype, kernel: str) -> None:
    if kernel == "cuda" and case.head_dim % 8:
        pytest.skip("no CUDA kernel is for such a head")
    check_parity(prepare_window_attention, case.weights, [case.qkv], dtype, kernel, options=case.options)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_batch_0(backend: str) -> None:
    op = prepared(backend)
    assert op(place(backend, SHIFTED.qkv[:0], torch.float32)).shape == (0, 6, 9, 48)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_same_bits_whatever_the_threads_and_the_neighbours(kernel: str) -> None:
    qkv = place(kernel, SHIFTED.qkv, torch.float32)
    check_images_apart(prepared(kernel), torch.cat([qkv, qkv.flip(0)]))
    check_determinism(prepared(kernel), qkv)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_the_options_say_all_that_a_call_needs(backend: str) -> None:
    """As a file has them: the scale is a number there."""
    op = prepared(backend, CASES[0])
    assert op.options == {"num_heads": 1, "head_dim": 32, "window_size": 7, "shift_size": 3, "scale": 32**-0.5}
    qkv = place(backend, CASES[0].qkv, torch.float32)
    assert torch.equal(type(op)(op.packed(), **op.options)(qkv), op(qkv))


@pytest.mark.parametrize("kernel", kernels("prepare_window_attention", "cuda"))
def test_a_place_for_the_result_that_begins_anywhere(kernel: str) -> None:
    """The kernels write 16 bytes at a time; such a place gets a copy."""
    op, qkv = prepared(kernel, CASES[0]), place(kernel, CASES[0].qkv, torch.float32)
    room = torch.zeros(1 + qkv.numel() // 3, device=qkv.device)
    out = op(qkv, room[1:].view(2, 7, 7, 32))
    assert out.data_ptr() == room[1:].data_ptr()
    assert torch.equal(out, op(qkv))


BAD = [
    ({"bias_table": torch.randn(48, 3)}, ValueError, r"bias_table must be \[49, 3\]"),
    ({"bias_table": None}, TypeError, "bias_table must be a torch.Tensor, got NoneType"),
    ({"qkv_bias": torch.randn(143)}, ValueError, r"qkv_bias must be \[144\]"),
    ({"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0"),
    ({"head_dim": 1.5}, TypeError, "head_dim must be an integer, got 1.5"),
    ({"shift_size": 4}, ValueError, "shift_size must be from 0 to window_size - 1 = 3, got 4"),
    ({"scale": "1"}, ValueError, "scale must be a finite number or None, got '1'"),
    ({"dtype": torch.int8}, TypeError, "dtype must be one of"),
    ({"backend": "mps"}, ValueError, "backend must be one of"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[f"{row[0]!s:.30}" for row in BAD])
def test_bad_preparation_is_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {**place("native", SHIFTED.weights, torch.float32), **SHIFTED.options, "dtype": torch.float32}
    with pytest.raises(error, match=message):
        prepare_window_attention(**{**given, **arguments})


@pytest.mark.parametrize("kernel", kernels("prepare_window_attention", "native"))
def test_a_head_that_no_kernel_serves(kernel: str) -> None:
    case = Case("", (1, 2, 2), 1, 4, 2)
    with pytest.raises(
        BackendError,
        match=f"'{kernel}' cannot serve prepare_window_attention: head_dim 4 has no kernel: those from 8 to 128 have",
    ):
        prepared(kernel, case)


X = torch.randn(1, 3, 5, 144)
BAD_CALLS = [
    ([None], "qkv must be a torch.Tensor, got NoneType"),
    ([X[0]], r"qkv must be \[B, H, W, 144\] with H and W at least 1"),
    ([X[..., :141].contiguous()], r"qkv must be \[B, H, W, 144\]"),
    ([X.bfloat16()], "qkv must be torch.float32 as the op was prepared for, got torch.bfloat16"),
    ([X.transpose(1, 2)], "qkv must be contiguous"),
    ([X, torch.empty(1, 3, 5, 47)], r"out must be \[1, 3, 5, 48\]"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS, ids=[row[1][:40] for row in BAD_CALLS])
@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_bad_calls_are_refused(arguments: list[Any], message: str, backend: str) -> None:
    op = prepared(backend)
    with pytest.raises((TypeError, ValueError), match=message):
        op(*place(backend, arguments))
