"""The prepared MLP: the reference against its definition, and every kernel against the reference."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hifuse_fast import BackendError
from hifuse_fast.backends import tables
from hifuse_fast.backends.record import recording
from hifuse_fast.ops import mlp, prepare_mlp
from hifuse_fast.ops.prepared.linear.bounds import STRASSEN
from hifuse_fast.testing import assert_within_rule
from tests.support.kernels import kernels, uniform
from tests.support.prepared import DTYPES, check_determinism, check_images_apart, check_parity, matrix, place

pytestmark = pytest.mark.gpu
KERNELS = kernels("prepare_mlp", "native", "triton", "cuda")
# B, H, W, K, hidden, N
SHAPES = [
    (2, 7, 7, 96, 384, 32),
    (1, 5, 3, 13, 31, 7),
    (1, 1, 1, 1, 1, 1),
    (1, 3, 9, 40, 193, 33),
    (2, 19, 13, 24, 200, 65),
    (1, 2, 2, 288, 1152, 96),
    (1, 5, 5, 64, 193, 33),  # odd rows in halves, a last pair of panels of one column
    (2, 7, 7, 800, 96, 32),  # two runs of half the depth
    (1, 1, 1, 32, 64, 5),
]
WAYS = {  # of the Triton kernels
    "one kernel": {"fused": 1, "BLOCK_M": 32, "BLOCK_H": 32, "num_warps": 4, "num_stages": 1},
    "in parts": {"fused": 0, "scratch": 4},  # KiB: the larger shapes take several parts
}
ways = pytest.mark.parametrize("way", WAYS)


def weights(depth: int, hidden: int, columns: int) -> dict[str, Tensor]:
    return {
        "expand": matrix("expand", hidden, depth),
        "expand_bias": uniform("expand_bias", hidden),
        "project": matrix("project", columns, hidden),
        "project_bias": uniform("project_bias", columns),
    }


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference_is_the_definition(shape: tuple[int, ...]) -> None:
    w, u = weights(*shape[3:]), uniform("u", *shape[:4])
    hidden = torch.einsum("bhwk,nk->bhwn", u, w["expand"]) + w["expand_bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    expected = torch.einsum("bhwk,nk->bhwn", hidden, w["project"]) + w["project_bias"]
    op = prepare_mlp(**w, dtype=torch.float64, backend="reference")
    torch.testing.assert_close(op(u), expected)
    residual = uniform("residual", *expected.shape)
    torch.testing.assert_close(op(u, residual=residual), residual + expected)


@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_parity(shape: tuple[int, ...], dtype: torch.dtype, with_residual: bool, kernel: str) -> None:
    if kernel in ("triton", "cuda") and max(shape) == 1:
        pytest.skip("it rounds the hidden map as PyTorch does; the rule needs more than one value, which may be right by luck")
    residual = uniform("residual", *shape[:3], shape[5]) if with_residual else None
    strassen = shape[3] % 32 == 0 and dtype == torch.float32 and kernel == "native"
    for algorithm, rule in (
        ("auto", partial(assert_within_rule, bound=STRASSEN) if strassen else assert_within_rule),
        ("direct", assert_within_rule),
    )[: 1 if kernel == "cuda" else 2]:
        check_parity(
            prepare_mlp,
            weights(*shape[3:]),
            [uniform("u", *shape[:4])],
            dtype,
            kernel,
            options={"algorithm": algorithm},
            residual=residual,
            rule=rule,
        )


@pytest.mark.parametrize("kernel", kernels("prepare_mlp", "native"))
def test_strassen_is_taken_in_float32_and_direct_is_not_it(kernel: str) -> None:
    w, u = place(kernel, (weights(64, 128, 32), uniform("u", 1, 5, 7, 64)), torch.float32)
    auto, direct = (prepare_mlp(**w, algorithm=each, dtype=torch.float32, backend=kernel) for each in ("auto", "direct"))
    assert auto.expand.numel() == 7 * direct.expand.numel() // 4
    assert not torch.equal(auto(u), direct(u))
    torch.testing.assert_close(auto(u), direct(u))


# Each dtype and each residual once; the others are slow, for the interpreter takes a second for a call.
PAIRS = [(torch.float32, True), (torch.bfloat16, False)]
SLOW_PAIRS = [(torch.float32, False), (torch.bfloat16, True), (torch.float16, False), (torch.float16, True)]


@pytest.mark.parametrize(
    ("dtype", "with_residual"), PAIRS + [pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW_PAIRS]
)
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if max(shape) > 1], ids=str)
@ways
@pytest.mark.parametrize("kernel", kernels("prepare_mlp", "triton"))
def test_parity_of_both_ways(shape: tuple[int, ...], dtype: torch.dtype, with_residual: bool, way: str, kernel: str) -> None:
    residual = uniform("residual", *shape[:3], shape[5]) if with_residual else None
    with tables.override("mlp_forward", WAYS[way]):
        check_parity(prepare_mlp, weights(*shape[3:]), [uniform("u", *shape[:4])], dtype, kernel, residual=residual)


def prepared(backend: str, *sizes: int) -> Any:
    values = place(backend, weights(*(sizes or (8, 20, 5))), torch.float32)
    return prepare_mlp(**values, dtype=torch.float32, backend=backend)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
@ways
def test_batch_0(way: str, backend: str) -> None:
    with tables.override("mlp_forward", WAYS[way]):
        u, residual = place(backend, (torch.empty(0, 3, 5, 8), torch.empty(0, 3, 5, 5)))
        assert prepared(backend)(u).shape == (0, 3, 5, 5)
        assert prepared(backend)(u, residual=residual).shape == (0, 3, 5, 5)


@pytest.mark.parametrize("kernel", kernels("prepare_mlp", "triton"))
@ways
def test_one_look_up_serves_the_function_and_the_prepared_op(way: str, kernel: str) -> None:
    """What is measured for the one holds for the other: the biases and the residual are a few loads more."""
    u, w = place(kernel, (uniform("u", 1, 3, 5, 8), weights(8, 20, 5)), torch.float32)
    with tables.override("mlp_forward", WAYS[way]), tables.lookups() as of_op:
        prepared(kernel)(u)
    with tables.override("mlp_forward", WAYS[way]), tables.lookups() as of_function:
        mlp(u, w["expand"], w["project"], backend=kernel)
    assert of_op == of_function
    assert len([name for name, _ in of_op if name == "mlp_forward"]) == 1


@pytest.mark.parametrize("kernel", kernels("prepare_mlp", "native"))
def test_images_are_apart(kernel: str) -> None:
    """Their rows are odd in number; Strassen's product takes them in pairs."""
    for depth in (40, 64):
        check_images_apart(prepared(kernel, depth, 250, 33), place(kernel, uniform("u", 4, 5, 7, depth), torch.float32))


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_same_bits_whatever_the_threads(kernel: str) -> None:
    for depth in (40, 64):  # 64 by Strassen's algorithm
        check_determinism(prepared(kernel, depth, 250, 33), place(kernel, uniform("u", 2, 19, 23, depth), torch.float32))


BAD = [
    ({"expand": torch.randn(20, 8, 1, 1)}, ValueError, r"expand must be \[H, K\], got \[20, 8, 1, 1\]"),
    ({"expand_bias": torch.randn(8)}, ValueError, r"expand_bias must be \[H\] = \[20\], got \[8\]"),
    ({"project": torch.randn(20, 5)}, ValueError, r"project must be \[N, H\] = \[20, 20\], got \[20, 5\]"),
    ({"project_bias": torch.randn(6)}, ValueError, r"project_bias must be \[N\] = \[5\], got \[6\]"),
    ({"project": None}, TypeError, "project must be a torch.Tensor, got NoneType"),
    ({"dtype": torch.int8}, TypeError, "dtype must be one of"),
    ({"algorithm": "strassen"}, ValueError, "algorithm must be one of auto, direct, got 'strassen'"),
    ({"backend": "native", "dtype": torch.float64}, BackendError, "'native' cannot serve prepare_mlp"),
    ({"backend": "native", "dtype": torch.float16}, BackendError, "'native' cannot serve prepare_mlp"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[f"{row[0]!s:.30}" for row in BAD])
def test_bad_preparation_is_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = place(arguments.get("backend", "native"), weights(8, 20, 5), torch.float32)
    good = {**given, "dtype": torch.float32}
    with pytest.raises(error, match=message):
        prepare_mlp(**{**good, **arguments})


U = torch.randn(1, 3, 5, 8)
BAD_CALLS = [
    ([None], "u must be a torch.Tensor, got NoneType"),
    ([torch.randn(1, 3, 5, 9)], r"u must be \[B, H, W, 8\] with H and W at least 1, got \[1, 3, 5, 9\]"),
    ([U.bfloat16()], "u must be torch.float32 as the op was prepared for, got torch.bfloat16"),
    ([U.transpose(1, 2)], "u must be contiguous"),
    ([U, torch.randn(1, 3, 5, 8)], r"residual must be \[1, 3, 5, 5\]"),
    ([U, None, torch.empty(1, 3, 5, 6)], r"out must be \[1, 3, 5, 5\]"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS, ids=[row[1][:40] for row in BAD_CALLS])
@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_bad_calls_are_refused(arguments: list[Any], message: str, backend: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        prepared(backend)(*place(backend, arguments))


@pytest.mark.parametrize("kernel", kernels("prepare_mlp", "triton"))
def test_nothing_follows_the_last_product(kernel: str) -> None:
    """The residual and the bias are what it is added to."""
    op, u, residual = prepared(kernel), *place(kernel, (torch.ones(1, 2, 3, 8), torch.ones(1, 2, 3, 5)))
    with recording("sm_90") as record:
        op(u, residual=residual)
        op(u)
    assert [each.kernel.fn.__name__ for each in record.launches] == ["_activate_kernel", "_finish_kernel"]
