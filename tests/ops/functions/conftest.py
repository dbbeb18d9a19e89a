"""What is said once of all functions: which of their parity tests are slow, and which are of one backend alone."""

from __future__ import annotations

import pytest
import torch


@pytest.hookimpl(tryfirst=True)  # before tests are left out by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what Triton and CUDA compute in float16, but for the first case of each test.

    To a kernel float16 differs from bfloat16 in its casts alone, and neither the interpreter nor the emulation is fast. Some
    kernels in Triton go two ways, by their table; those in CUDA have one.
    """
    items[:] = [item for item in items if not _is_another_way_of_triton(item)]
    seen = set()
    for item in items:
        call = getattr(item, "callspec", None)
        if call is None or call.params.get("dtype") != torch.float16 or call.params.get("kernel") not in ("triton", "cuda"):
            continue
        test = (item.nodeid.partition("[")[0], call.params["kernel"])
        if test in seen:
            item.add_marker(pytest.mark.slow)
        seen.add(test)


def _is_another_way_of_triton(item: pytest.Item) -> bool:
    given = getattr(getattr(item, "callspec", None), "params", {})
    way = given.get("way", getattr(given.get("case"), "way", None))
    return "cuda" in (given.get("kernel"), given.get("backend")) and way == "vendor"
