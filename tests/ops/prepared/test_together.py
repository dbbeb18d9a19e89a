"""Prepared ops that are called together: in one launch where one kernel serves them; else by turns, and where a hook looks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hifuse_fast.backends.cuda import launch
from hifuse_fast.ops import prepare_linear
from hifuse_fast.ops.prepared.base import PreparedOp
from hifuse_fast.ops.prepared.together import Call, together
from tests.support.emulation import launched
from tests.support.kernels import kernels, uniform
from tests.support.prepared import matrix, place

pytestmark = pytest.mark.gpu
only = pytest.mark.parametrize("kernel", kernels("prepare_linear", "cuda"))


def linear(kernel: str, name: str, **options: object) -> tuple[PreparedOp, Tensor]:
    """An op as a network has it, without the checks of a user's calls, and a map for it."""
    weight, bias, x = place(
        kernel, (matrix(name, 24, 16), uniform(name, 24), uniform(f"x of {name}", 2, 4, 6, 16)), torch.bfloat16
    )
    made = prepare_linear(weight, bias, dtype=torch.bfloat16, backend=kernel, **options)
    return type(made)(made.packed(), **made.options), x


def calls_of(kernel: str) -> list[Call]:
    made = [linear(kernel, "a", norm="row"), linear(kernel, "b"), linear(kernel, "c", activation="relu", pool=True)]
    return [(op, x, torch.empty_like(op(x))) for op, x in made]


@only
def test_one_launch_gives_what_the_ops_give(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = calls_of(kernel)
    expected = [op(x) for op, x, _ in calls]
    monkeypatch.setattr(launch, "multiprocessors", lambda _: 1000)
    with launched() as entries:
        results = together(*calls)
    assert entries == ["products"]
    for result, out, right in zip(results, (out for *_, out in calls), expected, strict=True):
        assert result.data_ptr() == out.data_ptr()
        assert torch.equal(result, right)


@only
def test_a_hook_or_another_module_sees_each_call(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "multiprocessors", lambda _: 1000)
    first, second, _ = calls_of(kernel)
    op, seen = first[0], []

    def count() -> int:
        with launched() as entries:
            together(first, second)
        return len(entries)

    assert count() == 1
    of_all = nn.modules.module
    for name, register in (
        ("after", op.register_forward_hook),
        ("before", op.register_forward_pre_hook),
        ("all, after", of_all.register_module_forward_hook),
        ("all, before", of_all.register_module_forward_pre_hook),
    ):
        handle = register(lambda *_, name=name: seen.append(name))
        assert count() == 2
        handle.remove()
    assert seen == ["after", "before", *["all, after"] * 2, *["all, before"] * 2]
    monkeypatch.setattr(op, "forward", lambda x, out: out.fill_(1))
    assert count() == 1
    assert bool((together(first, second)[0] == 1).all())


def test_ops_of_a_backend_without_a_joint_launch_are_called_by_turns() -> None:
    calls = calls_of("reference")
    assert all(map(torch.equal, together(*calls), [op(x) for op, x, _ in calls]))
