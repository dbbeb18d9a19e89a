"""The product in CUDA by itself: sums in parts, stages, alignment; and the gradient of GELU. Its ops have their own parity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.backends.cuda import launch, pointwise
from hifuse_fast.backends.cuda import product as of_products
from hifuse_fast.backends.cuda.product import Product, product, products
from hifuse_fast.ops import prepare_linear
from hifuse_fast.testing import assert_within_rule
from tests.support.emulation import check_runs, launched, stages_used_once
from tests.support.kernels import kernels, uniform
from tests.support.prepared import check_images_apart, check_parity, matrix, place

pytestmark = pytest.mark.gpu
only = pytest.mark.parametrize("kernel", kernels("prepare_linear", "cuda"))


def multiprocessors(count: int) -> Callable[[torch.device], int]:
    return lambda _: count


@only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_sum_in_parts_has_the_same_bits_whoever_adds_them(
    dtype: torch.dtype, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An odd number of steps, with a norm that begins within a row, and a batch of which each image is as alone."""
    weights = {"weight": matrix("weight", 20, 552), "bias": uniform("bias", 20)}  # two parts of at least eight steps
    x, residual = uniform("x", 3, 2, 3, 552) + 0.5, uniform("residual", 3, 2, 3, 20)
    options = {"norm": "row", "activation": "gelu"}
    check_parity(prepare_linear, weights, [x], dtype, kernel, options=options, residual=residual)
    weights, x, residual = place(kernel, (weights, x, residual), dtype)
    op = prepare_linear(**weights, **options, dtype=dtype, backend=kernel)
    one_block = op(x, residual=residual)
    monkeypatch.setattr(launch, "multiprocessors", multiprocessors(1000))
    assert torch.equal(op(x, residual=residual), one_block)
    assert torch.equal(op(x[1:2], residual=residual[1:2]), one_block[1:2])


@only
def test_taps_in_parts(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    z, weight = place(kernel, (uniform("z", 1, 3, 4, 64), matrix("weight", 64, 576)), torch.bfloat16)
    results = []
    for count in (1, 1000):
        monkeypatch.setattr(launch, "multiprocessors", multiprocessors(count))
        results.append(product([z], weight, None, torch.empty_like(z), source="taps"))
    assert torch.equal(*results)


def three_products(kernel: str, dtype: torch.dtype) -> list[Product]:
    """Of one map: a linear with a norm and a residual, one of patches, one that is pooled. Sums of all are cut."""
    drawn = {"x": uniform("x", 1, 4, 6, 552) + 0.5, "deep": matrix("deep", 20, 2208), "w": matrix("w", 100, 552)}
    x, deep, w, bias, residual = place(
        kernel, (*drawn.values(), uniform("bias", 100), uniform("residual", 1, 4, 6, 100)), dtype
    )
    small = x.new_empty((1, 2, 3, 20)), x.new_empty((1, 2, 3, 100))
    return [
        Product([x], w, bias, torch.empty_like(residual), norm="row", activation="gelu", residual=residual),
        Product([x], deep, None, small[0], source="patches", norm="pixel"),
        Product([x], w, bias, small[1], activation="relu", pool=True),
    ]


@only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [1000, 4, 3, 2])
def test_products_have_the_same_bits_together_and_alone(
    count: int, dtype: torch.dtype, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one launch or three, where the parts of all have blocks of their own, or those of the second alone."""
    calls = three_products(kernel, dtype)
    alone = [products([call])[0].clone() for call in calls]
    monkeypatch.setattr(launch, "multiprocessors", multiprocessors(count))
    with launched() as entries:
        results = products(calls)
    assert entries == ["products"]
    assert [result.data_ptr() for result in results] == [call.out.data_ptr() for call in calls]
    assert all(map(torch.equal, results, alone))


@only
def test_several_products_are_one_launch_while_their_blocks_are_few(kernel: str) -> None:
    lib = launch.library.lib
    if lib is None:
        pytest.skip("there is no library")
    calls = three_products(kernel, torch.bfloat16)
    sizes, numbers = [size for call in calls for size in of_products._sizes(call)], [call.eps for call in calls]
    blocks = 2 * 2 + 9 * 1 + 2 * 2  # parts of each, times its tiles
    a_sum = 4 * 128 * 96
    assert [lib.product_launches(sizes, numbers, count) for count in (1000, 9, 8, 2)] == [1, 1, 3, 3]
    assert lib.products_scratch(sizes, numbers, 1000) == blocks * a_sum  # of all at the same time
    assert lib.products_scratch(sizes, numbers, 8) == 9 * a_sum  # of one after another
    assert lib.products_scratch(sizes, numbers, 1) == 0
    assert lib.product_counters(7) == 3 * 7


@only
def test_counters_are_set_to_zero_once_for_all_products_of_a_call(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "multiprocessors", multiprocessors(1000))
    calls, made = three_products(kernel, torch.bfloat16), []
    device = calls[0].weight.device
    zeros = launch._zeros
    monkeypatch.setattr(launch, "_zeros", lambda device: made.append(zeros(device)) or made[-1])
    expected = [each.clone() for each in products(calls)]
    products(calls)
    assert len(made) == 2
    with launch.counted_together(device):
        for _ in range(2):
            assert all(map(torch.equal, products(calls), expected))
    assert len(made) == 3
    assert not made[-1].any()
    with launch.counted_together(torch.device("meta")):  # of another device
        products(calls)
    assert [each.device.type for each in made[3:]] == ["meta", device.type]


@only
def test_products_without_parts_need_no_counters(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = three_products(kernel, torch.bfloat16)
    monkeypatch.setattr(launch, "multiprocessors", multiprocessors(1))
    monkeypatch.setattr(launch, "_zeros", lambda _: pytest.fail("counters were set to zero for nobody"))
    products(calls)


@only
def test_the_table_says_for_how_many_multiprocessors_products_are_cut(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In percent of those that there are; the bits are the same, and without any share no block has a part of a sum."""
    calls = three_products(kernel, torch.bfloat16)
    monkeypatch.setattr(launch, "multiprocessors", multiprocessors(1000))
    results, cut_for, original = [], [], launch._call
    monkeypatch.setattr(launch, "_call", lambda kept, stream: (cut_for.append(kept.sizes[-1]), original(kept, stream)))
    for share in (100, 50, 0):
        with tables.override(launch.PRODUCTS, {"share": share}):
            results.append([out.clone() for out in products(calls)])
    assert cut_for == [1000, 500, 0]
    for first, *others in zip(*results, strict=True):
        assert all(torch.equal(first, other) for other in others)


@only
def test_products_of_two_dtypes_are_refused(kernel: str) -> None:
    if launch.library.lib is None:
        pytest.skip("there is no library")
    with pytest.raises(RuntimeError, match="products that are called together have one dtype"):
        products([three_products(kernel, dtype)[0] for dtype in (torch.float32, torch.bfloat16)])


@only
def test_a_place_for_the_result_that_begins_anywhere(kernel: str) -> None:
    weight, bias, x = place(kernel, (matrix("w", 8, 16), uniform("b", 8), uniform("x", 1, 3, 5, 16)), torch.bfloat16)
    op = prepare_linear(weight, bias, dtype=torch.bfloat16, backend=kernel)
    room = torch.zeros(1 + 15 * 8, dtype=torch.bfloat16, device=x.device)
    out = op(x, out=room[1:].view(1, 3, 5, 8))
    assert out.data_ptr() == room[1:].data_ptr()
    assert torch.equal(out, op(x))


@only
def test_maps_that_are_too_large_are_refused(kernel: str) -> None:
    if launch.library.lib is None:
        pytest.skip("there is no library")
    x = place(kernel, torch.empty(0, 40000, 1, 8))
    with pytest.raises(RuntimeError, match="more than 32767 pixels high or wide"):
        product([x], x.new_ones(8, 8), None, x)


@only
def test_images_are_apart_in_bfloat16(kernel: str) -> None:
    weight, bias, x = place(kernel, (matrix("w", 9, 24), uniform("b", 9), uniform("x", 4, 3, 7, 24)), torch.bfloat16)
    check_images_apart(prepare_linear(weight, bias, norm="row", dtype=torch.bfloat16, backend=kernel), x)


@only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gelu_and_its_gradient(dtype: torch.dtype, kernel: str) -> None:
    z, grad = place(kernel, (6 * uniform("z", 5, 41), uniform("grad", 5, 41)), dtype)

    def run(compute: torch.dtype) -> tuple[Tensor, Tensor]:
        leaf = z.to(compute).requires_grad_()
        out = torch.nn.functional.gelu(leaf)
        return torch.autograd.grad(out, leaf, grad.to(compute))[0], out.detach()

    for actual, eager, exact in zip(
        pointwise.gelu_backward(grad, z, activate=True), run(dtype), run(torch.float64), strict=True
    ):
        assert actual is not None
        assert_within_rule(actual, eager, exact)


def every_stage(kernel: str, depth: int = 232) -> list[tuple[Any, list[Tensor]]]:
    """Calls that go round each stage of the pipeline twice, of a whole tile and more."""
    weights = {"weight": matrix("weight", 100, depth), "bias": uniform("bias", 100)}
    made = []
    for dtype in (torch.bfloat16, torch.float32):
        w, x = place(kernel, (weights, uniform("x", 1, 11, 12, depth)), dtype)
        made.append((prepare_linear(**w, norm="row", activation="gelu", dtype=dtype, backend=kernel), [x]))
    return made


@only
def test_stages_are_used_twice(kernel: str) -> None:
    stages_used_once()
    for op, maps in every_stage(kernel):
        op(*maps)
    assert stages_used_once() == []


@only
@pytest.mark.slow
@pytest.mark.parametrize("parts", [False, True])
def test_the_same_bits_in_all_runs(parts: bool, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if parts:
        monkeypatch.setattr(launch, "multiprocessors", multiprocessors(1000))
    for op, maps in every_stage(kernel, 552 if parts else 232):  # of two parts
        check_runs(lambda op=op, maps=maps: [op(*maps)])
    z, weight = place(kernel, (uniform("z", 1, 5, 7, 64), matrix("weight", 64, 576)), torch.bfloat16)
    check_runs(lambda: [product([z], weight, None, torch.empty_like(z), source="taps", activation="gelu", residual=z)])


@only
@pytest.mark.slow
def test_the_same_bits_whichever_part_is_the_last(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "multiprocessors", multiprocessors(1000))
    calls = three_products(kernel, torch.bfloat16)
    check_runs(lambda: [result.clone() for result in products(calls)])
