"""What is said once of all functions: how many of their parity tests are in float16."""

from __future__ import annotations

import pytest
import torch


@pytest.hookimpl(tryfirst=True)  # before tests are left out by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what Triton computes in float16, but for the first case of each test.

    To a kernel float16 differs from bfloat16 in its casts alone, and the interpreter is slow.
    """
    seen = set()
    for item in items:
        call = getattr(item, "callspec", None)
        if call is None or (call.params.get("dtype"), call.params.get("kernel")) != (torch.float16, "triton"):
            continue
        test = item.nodeid.partition("[")[0]
        if test in seen:
            item.add_marker(pytest.mark.slow)
        seen.add(test)
