"""The fuse path in one kernel: against its parts, in what it takes of them, and whether it is taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hifuse_fast.backends.cuda import launch
from hifuse_fast.inference.buffers import FreshMaps
from hifuse_fast.ops import prepare_linear
from hifuse_fast.ops.prepared.fuse_path import prepare_fuse_path
from hifuse_fast.testing import assert_within_rule, nan_poisoned_empty
from tests.support.emulation import check_runs, launched
from tests.support.kernels import kernels, uniform
from tests.support.prepared import matrix, place

pytestmark = pytest.mark.gpu
CUDA = kernels("prepare_linear", "cuda")
only = pytest.mark.parametrize("backend", CUDA)


@dataclass(frozen=True)
class Case:
    """A path and the size of its maps; `before` channels of the fused map, 0 for none."""

    shape: tuple[int, int, int]  # B, H, W
    channels: int
    before: int = 0

    def maps(self) -> list[Tensor | None]:
        batch, height, width = self.shape
        fused_map = uniform("f", batch, 2 * height, 2 * width, self.before) + 0.3 if self.before else None
        return [uniform("l", *self.shape, self.channels) + 0.5, uniform("g", *self.shape, self.channels), fused_map]


CASES = {
    "stage 1": Case((1, 5, 13), 96),
    "narrow": Case((2, 3, 5), 8),
    "channels that do not fill the kernel": Case((1, 5, 14), 40),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def path(case: Case, dtype: torch.dtype, backend: str, rounded: torch.dtype | None = None) -> Any:
    """Of values that are numbers of `rounded`."""
    c, count = case.channels, 3 if case.before else 2

    def linear(name: str, depth: int, **options: Any) -> Any:
        given = matrix(name, c, depth), uniform(f"bias of {name}", c)
        weights = place(backend, [each.to(rounded or dtype).to(dtype) for each in given])
        made = prepare_linear(*weights, **options, dtype=dtype, backend=backend)
        return type(made)(made.packed(), **made.options)  # as a network has it: without the checks of a user's calls

    return prepare_fuse_path(
        local_linear=linear("l", c), global_linear=linear("g", c),
        up=linear("f", case.before, activation="relu", pool=True) if case.before else None,
        fuse=linear("w", count * c, norm="row", eps=1e-3, activation="gelu"),
    )  # fmt: skip


def run(path: Any, maps: list[Tensor | None]) -> list[Tensor]:
    """In one launch where the path is whole."""
    with launched() as kernels:
        results = path(*maps, FreshMaps(maps[0].dtype, maps[0].device))
    assert kernels == ["fuse_path"] or path.whole is None
    return [result for result in results if result is not None]


@only
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
@cases
def test_parity(case: Case, dtype: torch.dtype, backend: str) -> None:
    maps = [None if x is None else x.to(dtype) for x in case.maps()]
    eager, exact = (
        run(path(case, to, "reference", dtype), [None if x is None else x.to(to) for x in maps])
        for to in (dtype, torch.float64)
    )
    whole = path(case, dtype, backend)
    assert whole.whole is not None
    with nan_poisoned_empty():
        actual = run(whole, place(backend, maps))
    assert len(actual) == 1
    for each in zip(actual, eager, exact, strict=True):
        assert_within_rule(*each)


@only
def test_rows_of_equal_numbers_leave_nothing_but_the_bias(backend: str) -> None:
    """Large ones, whose distance from the zeros of channels that no map has would be no number of float16."""
    case = Case((1, 2, 3), 24)
    made = path(case, torch.float16, backend)
    for linear in (made.local_linear, made.global_linear):
        linear.weight.zero_()
        linear.bias.fill_(1000)
    made.whole = type(made.whole)(_packed(made), **made.whole.options)
    actual = run(made, place(backend, case.maps(), torch.float16))[0]
    expected = torch.nn.functional.gelu(made.fuse.bias.double()).expand_as(actual)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-3, atol=1e-3)


def _packed(made: Any) -> dict[str, Tensor]:
    parts = {name: getattr(made, name) for name in ("local_linear", "global_linear", "up", "fuse")}
    packed: dict[str, Tensor] = prepare_fuse_path(**parts).whole.packed()  # type: ignore[union-attr]
    return packed


@only
def test_a_pixel_that_is_not_finite_stays_alone(backend: str) -> None:
    case = CASES["narrow"]
    whole, maps = path(case, torch.bfloat16, backend), place(backend, case.maps(), torch.bfloat16)
    (expected,) = run(whole, maps)
    spoilt = [maps[0].clone(), *maps[1:]]
    spoilt[0][1, 2, 3, 5] = float("nan")
    (actual,) = run(whole, spoilt)
    assert not actual[1, 2, 3].isfinite().any()
    actual[1, 2, 3] = expected[1, 2, 3]
    assert torch.equal(actual, expected)


@only
def test_images_are_apart_and_none_is_none(backend: str) -> None:
    case = CASES["narrow"]
    whole, (local, other, _) = path(case, torch.bfloat16, backend), place(backend, case.maps(), torch.bfloat16)
    (both,) = run(whole, [local, other, None])
    assert torch.equal(run(whole, [local[1:], other[1:], None])[0][0], both[1])
    assert run(whole, [local[:0], other[:0], None])[0].shape == (0, 3, 5, 8)


@only
def test_parts_that_are_looked_at_are_called(backend: str) -> None:
    case = CASES["narrow"]
    made, maps = path(case, torch.bfloat16, backend), place(backend, case.maps(), torch.bfloat16)
    expected, seen = run(made, maps), []
    handle = made.fuse.register_forward_hook(lambda *_: seen.append("fuse"))
    with launched() as kernels:
        results = made(*maps, FreshMaps(torch.bfloat16, maps[0].device))
    handle.remove()
    assert kernels == ["products"] * 2
    assert seen == ["fuse"]
    assert results[1] is None
    torch.testing.assert_close(results[0], expected[0], rtol=0.02, atol=0.02)
    made.fuse = nn.Identity()
    assert not made._is_as_made()


@only
@pytest.mark.parametrize(
    ("case", "dtype"),
    [(Case((1, 2, 2), 104), torch.bfloat16), (Case((1, 2, 2), 16, 8), torch.bfloat16), (Case((1, 2, 2), 8), torch.float32)],
    ids=["too wide", "a fused map", "float32"],
)
def test_what_no_kernel_serves_is_several_launches(
    case: Case, dtype: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, maps = path(case, dtype, backend), place(backend, case.maps(), dtype)
    assert made.whole is None
    results = run(made, maps)
    assert results[0].shape == (*case.shape, case.channels)
    monkeypatch.setattr(launch, "multiprocessors", lambda _: 1000)
    with launched() as kernels:
        together = made(*maps, FreshMaps(dtype, maps[0].device))
    assert kernels == ["products"] * 2
    assert all(map(torch.equal, results, together))


@only
@pytest.mark.slow
def test_all_runs_have_the_same_bits(backend: str) -> None:
    case = CASES["channels that do not fill the kernel"]
    whole, maps = path(case, torch.bfloat16, backend), place(backend, case.maps(), torch.bfloat16)
    check_runs(lambda: run(whole, maps))
