"""What is said once of all functions: which of their parity tests are slow, and which are of one backend alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch


@pytest.hookimpl(tryfirst=True)  # before tests are left out by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow some of what Triton and CUDA compute in half precision, for the interpreter and the emulation are not fast.

    float32 takes every case. bfloat16 in Triton takes half of the cases of the tolerance rule, of either way: a case is a size
    or an option, which hardly ever meets a dtype. float16 takes the first case of each test: to a kernel it differs from
    bfloat16 in its casts alone. Some kernels in Triton go two ways, by their table; those in CUDA have one.
    """
    items[:] = [item for item in items if not _is_another_way_of_triton(item)]
    seen: Counter[tuple[object, ...]] = Counter()
    for item in items:
        given = _given(item)
        kernel, dtype, test = given.get("kernel"), given.get("dtype"), item.nodeid.partition("[")[0]
        if dtype == torch.float16 and kernel in ("triton", "cuda"):
            case = (test, kernel, dtype)
            kept = seen[case] == 0
        elif dtype == torch.bfloat16 and kernel == "triton" and test.endswith("::test_kernel_obeys_the_rule"):
            case = (test, kernel, dtype, _way(given))
            kept = seen[case] % 4 in (0, 3)  # of an option that alternates, both
        else:
            continue
        seen[case] += 1
        if not kept:
            item.add_marker(pytest.mark.slow)


def _given(item: pytest.Item) -> dict[str, Any]:
    """The parameters of a test by name."""
    return getattr(getattr(item, "callspec", None), "params", {})


def _way(given: dict[str, Any]) -> str | None:
    return given.get("way", getattr(given.get("case"), "way", None))


def _is_another_way_of_triton(item: pytest.Item) -> bool:
    given = _given(item)
    return "cuda" in (given.get("kernel"), given.get("backend")) and _way(given) == "vendor"
