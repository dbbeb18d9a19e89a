"""Window attention: the reference against its definition, and every kernel against the reference."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.backends.cuda import launch as cuda_launch
from hifuse_fast.backends.cuda import library
from hifuse_fast.ops import window_attention
from hifuse_fast.testing import assert_within_rule, relative_error
from tests.support.attention import (
    CASES,
    CUDA,
    CUDA_CASES,
    KERNELS,
    NATIVE,
    TRITON,
    TRITON_CASES,
    Case,
    check_parity,
    named,
    run,
)
from tests.support.emulation import check_runs, stages_used_once
from tests.support.functional import DTYPES
from tests.support.kernels import device_of

pytestmark = pytest.mark.gpu
SERVED = [
    pytest.param(case, kernel.values[0], marks=kernel.marks, id=f"{kernel.values[0]}, {case.name}")
    for kernel, cases in ((NATIVE[0], CASES), (TRITON[0], TRITON_CASES), (CUDA[0], CUDA_CASES))
    for case in cases
]
SLOW_CASES = [
    Case(f"h{heads} d{dim} m{window} s{shift} {height}x{width}", (2, height, width), heads, dim, window, shift)
    for heads, dim, window in itertools.product((1, 3), (8, 20, 32, 48, 96), (2, 5, 7, 8, 12))
    for height, width in ((13, 22), (7, 7), (14, 10))
    for shift in {0, window // 2, window - 1}
]

# ---- The definition ----------------------------------------------------------------------------------------------------


def by_definition(case: Case, qkv: Tensor, table: Tensor, qkv_bias: Tensor | None) -> Tensor:
    """Token by token, from the text: which keys a query sees, at which offset, in which region. Slow, shares no code."""
    batch, height, width = case.shape
    m, shift, heads, dim = case.window_size, case.shift_size, case.num_heads, case.head_dim
    padded_height, padded_width = math.ceil(height / m) * m, math.ceil(width / m) * m
    padding = torch.zeros(3 * heads * dim, dtype=qkv.dtype) if qkv_bias is None else qkv_bias
    scale = dim**-0.5 if case.scale is None else case.scale

    def part(at: int, length: int) -> int:  # of the mask, for a place on the rolled axis
        return 0 if at < length - m else 1 if at < length - shift else 2

    out = torch.zeros(batch, height, width, heads * dim, dtype=qkv.dtype)
    for b, y, x in itertools.product(range(batch), range(height), range(width)):
        ry, rx = (y - shift) % padded_height, (x - shift) % padded_width  # where the roll brings the token
        keys = []
        for ky, kx in itertools.product(range(ry // m * m, ry // m * m + m), range(rx // m * m, rx // m * m + m)):
            sy, sx = (ky + shift) % padded_height, (kx + shift) % padded_width
            token = qkv[b, sy, sx] if sy < height and sx < width else padding
            row = (ry - ky + m - 1) * (2 * m - 1) + rx - kx + m - 1
            same = part(ky, padded_height) == part(ry, padded_height) and part(kx, padded_width) == part(rx, padded_width)
            keys.append((token, table[row], 0.0 if same or shift == 0 else -100.0))
        query = qkv[b, y, x].reshape(3, heads, dim)[0]
        k, v = (torch.stack([token.reshape(3, heads, dim)[i] for token, _, _ in keys]) for i in (1, 2))
        mask = torch.tensor([mask for _, _, mask in keys], dtype=qkv.dtype)
        scores = scale * (k * query).sum(-1) + torch.stack([bias for _, bias, _ in keys]) + mask[:, None]
        out[b, y, x] = (scores.softmax(0)[:, :, None] * v).sum(0).flatten()
    return out


@named(CASES[1:5] + CASES[6:9])
def test_reference_is_the_definition(case: Case) -> None:
    tensors, _ = case.tensors(torch.float64)
    expected = by_definition(case, *tensors)
    actual = window_attention(tensors[0], tensors[1], qkv_bias=tensors[2], backend="reference", **case.options())
    assert relative_error(actual, expected) < 1e-12


# ---- Kernels -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "kernel"), SERVED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_obeys_the_rule(case: Case, dtype: torch.dtype, kernel: str) -> None:
    check_parity(case, dtype, kernel)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [*NATIVE, *TRITON])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@named(SLOW_CASES)
def test_kernel_obeys_the_rule_everywhere(case: Case, dtype: torch.dtype, kernel: str) -> None:
    check_parity(case, dtype, kernel)


# The emulation takes seconds for a large window.
SOME_SLOW_CASES = [case for case in SLOW_CASES if case.num_heads == 1 and case.head_dim % 8 == 0][::5]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", CUDA)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@named([*SOME_SLOW_CASES, CASES[5]])
def test_cuda_kernel_obeys_the_rule_everywhere(case: Case, dtype: torch.dtype, kernel: str) -> None:
    check_parity(case, dtype, kernel)


# ---- CUDA ----------------------------------------------------------------------------------------------------------------

SEVERAL_WINDOWS = [
    Case("whole windows", (1, 14, 27), 2, 32, shift_size=3),
    Case("windows of one block", (1, 12, 11), 1, 16, window_size=3, shift_size=1),
    Case("windows of several blocks", (1, 9, 36), 1, 8, window_size=9, shift_size=4),
]


@pytest.mark.parametrize("kernel", CUDA)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@named(SEVERAL_WINDOWS)
def test_stages_go_round(case: Case, dtype: torch.dtype, kernel: str) -> None:
    """A block of threads has so many windows that each stage of its pipelines is filled again."""
    stages_used_once()
    check_parity(case, dtype, kernel)
    assert stages_used_once() == []


@pytest.mark.parametrize("kernel", CUDA)
def test_six_runs_of_one_kernel(kernel: str) -> None:
    case = Case("", (1, 7, 20), 1, 32, shift_size=3)
    tensors, grad = case.tensors(torch.bfloat16, kernel)
    check_runs(lambda: run(case, tensors, grad, kernel, torch.bfloat16))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", CUDA)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@named(SEVERAL_WINDOWS + CUDA_CASES)
def test_six_runs(case: Case, dtype: torch.dtype, kernel: str) -> None:
    tensors, grad = case.tensors(dtype, kernel)
    check_runs(lambda: run(case, tensors, grad, kernel, dtype))


@pytest.mark.parametrize("kernel", CUDA)
def test_many_parts_are_added(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More shares of the windows than the last kernel has warps, as on a GPU, and no multiple of them."""
    monkeypatch.setattr(cuda_launch, "EMULATED_MULTIPROCESSORS", 16)
    check_parity(Case("", (1, 6, 22), 1, 8, window_size=2), torch.float32, kernel)


@pytest.mark.parametrize("kernel", CUDA)
@pytest.mark.parametrize(
    ("dtype", "head_dim"), [*((torch.bfloat16, width) for width in (16, 32, 64, 96)), (torch.float32, 96)], ids=str
)
def test_matrices_are_read_without_bank_conflicts(dtype: torch.dtype, head_dim: int, kernel: str) -> None:
    """Rows of 2, 4, 8, 12 and 24 chunks of 16 bytes."""
    if not library.EMULATED:
        pytest.skip("the emulation counts them")
    case = Case("", (1, 5, 7), 1, head_dim, window_size=7 if head_dim == 32 else 5)
    tensors, grad = case.tensors(dtype, kernel)
    emulation = library.lib.emulation
    emulation.counters()
    emulation.options(profile=True)
    try:
        run(case, tensors, grad, kernel, dtype)
    finally:
        emulation.options()
    counted = emulation.counters()
    assert counted["ldmatrix_requests"] > 0
    assert counted["ldmatrix_conflicts"] == 0


@pytest.mark.parametrize("kernel", CUDA)
def test_maps_that_begin_anywhere(kernel: str) -> None:
    """The kernels move 16 bytes at a time: other maps, and other places for a padded token, are copied."""
    case = Case("", (1, 4, 5), 1, 8, window_size=3, shift_size=1)
    (qkv, table, bias), _ = case.tensors(torch.bfloat16, kernel)
    expected = window_attention(qkv, table, qkv_bias=bias, backend=kernel, **case.options())
    odd = torch.cat([qkv.flatten()[:1], qkv.flatten()])[1:].view_as(qkv)
    odd_bias = torch.cat([bias[:1], bias])[1:]
    narrow = torch.cat([qkv, qkv[..., :1]], -1)[..., :-1]
    for view in (odd, narrow):
        assert torch.equal(window_attention(view, table, qkv_bias=odd_bias, backend=kernel, **case.options()), expected)


@pytest.mark.parametrize("kernel", CUDA)
def test_a_window_that_spans_more_than_32_bits(kernel: str) -> None:
    """Rows so far apart that the kernel of whole windows leaves the map to the other one; most of the memory is not touched."""
    case = Case("", (1, 7, 7), 1, 32, shift_size=0)
    (qkv, table, bias), _ = case.tensors(torch.float16, kernel)
    distance = 3 * 2**27  # elements; the last row lies more than 2^32 bytes from the first
    far = torch.empty(6 * distance + qkv[:, 0].numel(), dtype=torch.float16, device=qkv.device)
    view = far.as_strided(qkv.shape, (0, distance, *qkv.stride()[2:]))
    view.copy_(qkv)
    expected = window_attention(qkv, table, num_heads=1, qkv_bias=bias, backend=kernel)
    actual = window_attention(view, table, num_heads=1, qkv_bias=bias, backend=kernel)
    torch.testing.assert_close(actual, expected, atol=2e-3, rtol=0)


@contextlib.contextmanager
def small_tiles() -> Iterator[None]:
    """Within the block, Triton programs take several windows each, in blocks of 16 tokens."""
    config = {"block": 16, "programs": 2, "num_warps": 4, "num_stages": 1}
    with tables.override("window_attention_forward", config), tables.override("window_attention_backward", config):
        yield


TILED_CASES = [
    Case("one block", (2, 6, 8), 1, 8, window_size=3, shift_size=1, scale=0.5),
    Case("two blocks", (1, 6, 14), 1, 8, window_size=5, shift_size=2),
]


@pytest.mark.parametrize("kernel", TRITON)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@named(TILED_CASES)
def test_programs_of_several_windows(case: Case, dtype: torch.dtype, kernel: str) -> None:
    with small_tiles():
        check_parity(case, dtype, kernel)


@pytest.mark.parametrize("kernel", TRITON)
@named(TILED_CASES)
def test_equal_inputs_give_equal_bits(case: Case, kernel: str) -> None:
    tensors, grad = case.tensors(torch.bfloat16, kernel)
    with small_tiles():
        once, again = (run(case, tensors, grad, kernel, torch.bfloat16) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("kernel", NATIVE)
@named(CASES)
def test_float64_is_exact(case: Case, kernel: str) -> None:
    tensors, grad = case.tensors(torch.float64)
    actual = run(case, tensors, grad, kernel, torch.float64)
    for a, e in zip(actual, run(case, tensors, grad, "reference", torch.float64), strict=True):
        assert relative_error(a, e) < 1e-12


@pytest.mark.parametrize("kernel", NATIVE)
@pytest.mark.parametrize("case", [CASES[2], CASES[8]], ids=lambda case: case.name)
def test_gradcheck(case: Case, kernel: str) -> None:
    small = Case("gradcheck", (1, *case.shape[1:]), 1, 8, case.window_size, case.shift_size, case.scale)
    tensors, _ = small.tensors(torch.float64)
    leaves = [t.requires_grad_() for t in tensors if t is not None]

    def call(qkv: Tensor, table: Tensor, qkv_bias: Tensor) -> Tensor:
        return window_attention(qkv, table, qkv_bias=qkv_bias, backend=kernel, **small.options())

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("kernel", KERNELS)
def test_strides(kernel: str) -> None:
    """Views: permuted maps, a slice of channels, a broadcast batch; and a gradient that is an expanded scalar."""
    case = Case("", (2, 3, 5), 1, 16, window_size=3, shift_size=1)
    (qkv, table, bias), _ = case.tensors(torch.float32, kernel)
    views = {
        "NCHW memory": qkv.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "W and H swapped": qkv.transpose(1, 2).contiguous().transpose(1, 2),
        "slice of channels": torch.cat([qkv, qkv], -1)[..., : qkv.shape[-1]],
        "every other row": torch.stack([qkv, qkv], 2).flatten(1, 2)[:, ::2],
        "expanded batch": qkv[:1].expand(2, -1, -1, -1),
    }
    for name, view in views.items():
        leaf = view.detach().requires_grad_()
        out = window_attention(leaf, table, qkv_bias=bias, backend=kernel, **case.options())
        out.sum().backward()
        plain = view.contiguous().requires_grad_()
        expected = window_attention(plain, table, qkv_bias=bias, backend=kernel, **case.options())
        expected.backward(torch.ones_like(expected))
        assert out.is_contiguous(), name
        assert torch.equal(out, expected), name
        assert torch.equal(leaf.grad, plain.grad), name


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_batch_0(backend: str) -> None:
    (_, table, bias), _ = Case("", (1, 1, 1), 2, 16).tensors(torch.float32, backend)
    qkv = torch.empty(0, 9, 8, 96, device=table.device, requires_grad=True)
    table.requires_grad_()
    out = window_attention(qkv, table, num_heads=2, shift_size=3, qkv_bias=bias, backend=backend)
    assert out.shape == (0, 9, 8, 32)
    out.sum().backward()
    assert torch.equal(table.grad, torch.zeros_like(table))


@pytest.mark.parametrize("kernel", NATIVE)
def test_the_same_bits_whatever_the_threads(kernel: str) -> None:
    case = Case("", (3, 23, 19), 2, 24, shift_size=3)
    tensors, grad = case.tensors(torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(run(case, tensors, grad, kernel, torch.float32))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
def test_extreme_values(kernel: str) -> None:
    """Scores of +-10000 neither overflow nor lose rows; a NaN or an infinity stays within its window."""
    qkv = 100 * torch.randn(1, 7, 14, 96, generator=torch.Generator().manual_seed(0)).to(device_of(kernel))
    table = torch.zeros(169, 1, device=qkv.device)
    exact = window_attention(qkv.double(), table.double(), num_heads=1, scale=1.0, backend="reference")
    out = window_attention(qkv, table, num_heads=1, scale=1.0, backend=kernel)
    assert_within_rule(out, window_attention(qkv, table, num_heads=1, scale=1.0, backend="reference"), exact)
    for poison in (math.nan, math.inf):
        bad = qkv.clone()
        bad[0, 2, 3, 40] = poison  # of a key
        spread = window_attention(bad, table, num_heads=1, scale=1.0, backend=kernel)
        assert torch.equal(spread[:, :, 7:], out[:, :, 7:])
        if math.isnan(poison):
            assert spread[:, :, :7].isnan().all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("head_dim", [8, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_mask_is_a_summand(dtype: torch.dtype, head_dim: int, kernel: str) -> None:
    """Keys of another region whose scores are larger by 100 weigh as much as a query's own: the mask is -100, not -inf."""
    case = Case("", (1, 7, 7), 1, head_dim, shift_size=3, scale=1.0, bias=False)
    (qkv, table, _), grad = case.tensors(dtype, kernel)
    qkv[..., :head_dim], qkv[..., 0] = 0, 10
    qkv[..., head_dim] = torch.where(torch.arange(7, device=qkv.device)[:, None] < 3, 10, 0)
    eager, exact = (run(case, [qkv, table, None], grad, "reference", each) for each in (dtype, torch.float64))
    for name, *results in zip(
        ("out", "dqkv", "dtable"), run(case, [qkv, table, None], grad, kernel, dtype), eager, exact, strict=True
    ):
        assert_within_rule(*results, what=name)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_parameters_may_stay_float32(backend: str) -> None:
    """Under autocast the map is bfloat16 and the parameters are float32: each gets a gradient of its own dtype."""
    case = replace(TRITON_CASES[2], head_dim=24)
    (qkv, table, bias), grad = case.tensors(torch.float32, backend)
    leaves = [qkv.bfloat16().requires_grad_(), table.requires_grad_(), bias.requires_grad_()]
    out = window_attention(leaves[0], leaves[1], qkv_bias=leaves[2], backend=backend, **case.options())
    out.backward(grad.bfloat16())
    assert out.dtype == torch.bfloat16
    assert [leaf.grad.dtype for leaf in leaves] == [torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.parametrize(
    "kernel", [*(pytest.param(*each.values, marks=[*each.marks, pytest.mark.slow]) for each in NATIVE + TRITON), *CUDA]
)
def test_offsets_past_2_31(kernel: str) -> None:
    """Two images more than 2^31 elements apart, in memory that is reserved but hardly touched."""
    case = Case("", (2, 7, 7), 1, 32)
    (qkv, table, _), _ = case.tensors(torch.bfloat16, kernel)
    distance = 2**31 + 4096
    far = torch.empty(distance + qkv[0].numel(), dtype=torch.bfloat16, device=qkv.device)
    view = far.as_strided(qkv.shape, (distance, *qkv.stride()[1:]))
    view.copy_(qkv)
    assert torch.equal(
        window_attention(view, table, num_heads=1, backend=kernel), window_attention(qkv, table, num_heads=1, backend=kernel)
    )
