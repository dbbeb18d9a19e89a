"""How results are compared while tuning."""

from __future__ import annotations

import pytest
import torch

from hifuse_fast.backends import tables
from hifuse_fast.tuning import calls, cases


@pytest.mark.parametrize(
    ("got", "ok"), [([1.0, -2.0], True), ([1.01, -2.0], True), ([1.2, -2.0], False), ([float("nan"), -2.0], False)]
)
def test_results_may_differ_by_rounding_only(got: list[float], ok: bool) -> None:
    assert cases.close(torch.tensor(got).bfloat16(), torch.tensor([1.0, -2.0]).bfloat16()) is ok


def test_a_case_is_bound_again_under_another_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prepared op packs what its configuration wants."""
    (call,) = calls.choose("layer_norm norm1 56x56")
    first, second = (cases.Case(call, batch, "bfloat16", "forward", "triton") for batch in (64, 1))
    bound: list[tuple[int, dict[str, tables.Config]]] = []
    monkeypatch.setattr(cases.Case, "bind", lambda case, device: bound.append((case.batch, tables.overridden())))
    bench = cases.Cuda()
    for case in (first, first, second):
        bench._bound(case)
    for pixels in (1, 1, 2):
        with tables.override("mixer_winograd", {"pixels": pixels}):
            bench._bound(second)
    assert bound == [(64, {}), (1, {}), *((1, {"mixer_winograd": {"pixels": pixels}}) for pixels in (1, 2))]


def test_results_of_another_shape_are_wrong() -> None:
    assert not cases.close(torch.ones(2), torch.ones(3))
    assert cases.close(torch.ones(0, 3), torch.ones(0, 3))
    (call,) = calls.choose("layer_norm norm1 56x56")
    case = cases.Case(call, 64, "bfloat16", "forward", "triton")
    cases.check_results(case, [torch.ones(3)], [torch.ones(3)])
    with pytest.raises(cases.WrongResultError, match="layer_norm norm1 56x56x96, batch 64, bfloat16"):
        cases.check_results(case, [torch.ones(3)], [torch.zeros(3)])
