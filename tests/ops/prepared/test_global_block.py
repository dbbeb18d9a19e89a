"""The global block in one kernel: against its three parts, in what it takes of them, and whether it is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hifuse_fast.backends import tables
from hifuse_fast.inference.buffers import FreshMaps
from hifuse_fast.ops import prepare_linear, prepare_window_attention
from hifuse_fast.ops.prepared.global_block import prepare_global_block
from hifuse_fast.testing import assert_within_rule, nan_poisoned_empty
from tests.support.attention import Case, named
from tests.support.emulation import check_runs, launched
from tests.support.kernels import DEVICE, kernels, uniform
from tests.support.prepared import matrix

pytestmark = pytest.mark.gpu
CUDA = kernels("prepare_linear", "cuda")
CASES = [
    Case("stage 1", (1, 14, 14), 3, 32),
    Case("stage 2, shifted", (1, 7, 14), 6, 32, shift_size=3),
    Case("padded both ways, an odd number of windows", (1, 16, 9), 2, 32, shift_size=3, scale=0.3),
    Case("one shifted window of few tokens", (1, 4, 5), 1, 8, shift_size=2),
    Case("small windows, padding without a bias", (2, 5, 6), 2, 16, window_size=4, shift_size=1, bias=False),
    Case("many narrow heads", (1, 3, 8), 5, 8, window_size=3, shift_size=1),
    Case("windows of one token", (1, 3, 3), 1, 24, window_size=1),
]


def map_of(case: Case) -> Tensor:
    return uniform("x", *case.shape, case.num_heads * case.head_dim)


def block(case: Case, dtype: torch.dtype, backend: str, rounded: torch.dtype | None = None) -> Any:
    """Of values that are numbers of `rounded`."""
    c, tokens = case.num_heads * case.head_dim, (2 * case.window_size - 1) ** 2

    def given(tensor: Tensor) -> Tensor:
        return tensor.to(rounded or dtype).to(dtype)

    made: dict[str, Any] = {"dtype": dtype, "backend": backend}
    qkv = given(matrix("qkv", 3 * c, c)), given(uniform("qkv_bias", 3 * c))
    padding = given(uniform("padding", 3 * c)) if case.bias else None
    options: dict[str, Any] = {**case.options(), "head_dim": case.head_dim}
    return prepare_global_block(
        prepare_linear(*qkv, norm="row", eps=1e-3, **made),
        prepare_window_attention(given(uniform("table", tokens, case.num_heads)), padding, **options, **made),
        prepare_linear(given(matrix("output", c, c)), given(uniform("bias", c)), activation="gelu", **made),
    )


def run(block: Any, x: Tensor) -> Tensor:
    """In one launch where the block is whole."""
    with launched() as kernels:
        result: Tensor = block(x, FreshMaps(x.dtype, x.device))
    assert kernels == ["global_block"] or block.whole is None
    return result


@pytest.mark.parametrize("backend", CUDA)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@named(CASES)
def test_parity(case: Case, dtype: torch.dtype, backend: str) -> None:
    x = map_of(case).to(dtype)
    eager, exact = (run(block(case, to, "reference", dtype), x.to(to)) for to in (dtype, torch.float64))
    whole = block(case, dtype, backend)
    assert whole.whole is not None
    with nan_poisoned_empty():
        actual = run(whole, x)
    assert_within_rule(actual, eager, exact)


@pytest.mark.parametrize("backend", CUDA)
def test_a_map_of_no_images(backend: str) -> None:
    whole = block(CASES[0], torch.bfloat16, backend)
    assert run(whole, torch.empty(0, 7, 7, 96, dtype=torch.bfloat16, device=DEVICE)).shape == (0, 7, 7, 96)


@pytest.mark.parametrize("backend", CUDA)
def test_a_token_that_is_not_finite_stays_in_its_window(backend: str) -> None:
    case = CASES[0]
    whole, x = block(case, torch.bfloat16, backend), map_of(case).bfloat16()
    expected = run(whole, x)
    for value in (float("nan"), float("inf")):
        spoilt = x.clone()
        spoilt[0, 8, 9, 5] = value
        actual = run(whole, spoilt)
        assert not actual[0, 8, 9].isfinite().any()
        actual[0, 7:, 7:] = expected[0, 7:, 7:]
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("backend", CUDA)
def test_tokens_of_equal_numbers_have_no_spread(backend: str) -> None:
    """Large ones, whose distance from the zeros of channels that no map has would be no number of float16."""
    case = Case("two narrow heads", (1, 4, 5), 2, 8)
    x = torch.full_like(map_of(case), 1000, dtype=torch.float16)
    expected = run(block(case, torch.float16, "reference"), x)
    torch.testing.assert_close(run(block(case, torch.float16, backend), x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("backend", CUDA)
@named(CASES)
def test_all_runs_give_the_same_bits(case: Case, backend: str) -> None:
    whole, x = block(case, torch.bfloat16, backend), map_of(case).bfloat16()
    check_runs(lambda: [run(whole, x)])


@pytest.mark.parametrize("backend", CUDA)
@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (Case("float32", (1, 7, 7), 3, 32), torch.float32),
        (Case("too many heads", (1, 7, 7), 7, 32), torch.bfloat16),
        (Case("wide heads", (1, 7, 7), 1, 40), torch.bfloat16),
        (Case("large windows", (1, 7, 7), 1, 32, window_size=8), torch.bfloat16),
    ],
    ids=str,
)
def test_what_no_kernel_serves_is_three_calls(case: Case, dtype: torch.dtype, backend: str) -> None:
    assert block(case, dtype, backend).whole is None
    assert block(case, dtype, "reference").whole is None


@pytest.mark.parametrize("backend", CUDA)
def test_parts_that_are_hooked_or_replaced_are_called(backend: str) -> None:
    case = CASES[4]
    whole, x = block(case, torch.bfloat16, backend), map_of(case).bfloat16()
    seen: list[str] = []
    handle = whole.attention.register_forward_hook(lambda *_: seen.append("attention"))
    parts = whole(x, FreshMaps(x.dtype, x.device))
    handle.remove()
    torch.testing.assert_close(run(whole, x), parts, rtol=2e-2, atol=2e-2)
    assert seen == ["attention"]

    class Nothing(nn.Module):
        def forward(self, x: Tensor, residual: Tensor, out: Tensor) -> Tensor:
            return residual

    whole.output = Nothing()
    assert whole(x, FreshMaps(x.dtype, x.device)) is x


@pytest.mark.parametrize("backend", CUDA)
def test_the_table_says_from_how_many_pixels_on_a_block_is_one_kernel(backend: str) -> None:
    case = Case("few", (1, 4, 5), 1, 8, shift_size=2)
    made, x = block(case, torch.bfloat16, backend), map_of(case).bfloat16()
    parts = ["products", "window_attention_forward", "products"]
    for rows, expected in ((0, parts), (1, ["global_block"]), (20, ["global_block"]), (21, parts)):
        with tables.override("global_block", {"rows": rows}), launched() as found:
            made(x, FreshMaps(x.dtype, x.device))
        assert found == expected, rows
