"""What the tests of the prepared ops share: inputs, and parity with the reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from hifuse_fast.ops.prepared.base import PreparedOp
from hifuse_fast.testing import assert_within_rule, nan_poisoned_empty
from tests.support.kernels import device_of, uniform

DTYPES = [torch.float32, torch.bfloat16]
Rule = Callable[[Tensor, Tensor, Tensor], None]


def place(kernel: str, values: Any, dtype: torch.dtype | None = None) -> Any:
    """`values`, with every tensor in them where the kernel is tested, and of `dtype`; one on the meta device stays there."""
    device = device_of(kernel)
    return tree_map_only(Tensor, lambda x: x if x.is_meta else x.to(device, dtype or x.dtype), values)


def matrix(name: str, *shape: int) -> Tensor:
    """A weight that keeps the variance of what it multiplies, about."""
    return uniform(name, *shape, scale=(3 / math.prod(shape[1:])) ** 0.5)


def check_parity(
    prepare: Callable[..., PreparedOp],
    weights: dict[str, Tensor],
    maps: list[Tensor],
    dtype: torch.dtype,
    kernel: str,
    *,
    options: dict[str, Any] | None = None,
    residual: Tensor | None = None,
    rule: Rule = assert_within_rule,
) -> None:
    """The kernel against the reference in its dtype and in float64, on the same values, in memory full of NaN."""

    weights, maps, residual = place(kernel, (weights, maps, residual))

    def run(compute: torch.dtype, backend: str, **named: Any) -> Tensor | tuple[Tensor, Tensor]:
        values = {name: tensor.to(dtype).to(compute) for name, tensor in weights.items()}
        op = prepare(**values, **(options or {}), dtype=compute, backend=backend)
        if residual is not None:
            named["residual"] = residual.to(dtype).to(compute)
        return op(*(x.to(dtype).to(compute) for x in maps), **named)

    eager, exact = run(dtype, "reference"), run(torch.float64, "reference")
    with nan_poisoned_empty():
        actual = run(dtype, kernel)
    several = isinstance(actual, tuple)
    for a, p, e in zip(*(x if several else (x,) for x in (actual, eager, exact)), strict=True):
        assert a.is_contiguous()
        assert a.dtype == dtype
        rule(a, p, e)
    out = tuple(torch.full_like(x, float("nan")) for x in (actual if several else (actual,)))
    given = run(dtype, kernel, out=out if several else out[0])
    for a, g, o in zip(*(x if several else (x,) for x in (actual, given)), out, strict=True):
        assert g.data_ptr() == o.data_ptr()
        assert torch.equal(a, g)


def check_determinism(op: PreparedOp, *maps: Tensor) -> None:
    """The same bits whatever the number of threads."""
    if getattr(op, "backend", None) == "triton":
        pytest.skip("its products are the vendor's, whose bits depend on the number of threads on a CPU")
    threads = torch.get_num_threads()
    counts = (1, 3) if getattr(op, "backend", None) == "cuda" else (1, 2, 3)  # of which a CUDA kernel knows nothing
    try:
        results = []
        for count in counts:
            torch.set_num_threads(count)
            results.append(op(*maps))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


def check_images_apart(op: PreparedOp, *maps: Tensor) -> None:
    """An image's result does not depend on the others of its batch: not a bit of it, and whatever they are."""
    expected = op(*maps)
    for value in (float("nan"), float("inf"), 1e30):
        spoilt = [x.clone() for x in maps]
        for x in spoilt:
            x[1] = value
        actual = op(*spoilt)
        assert torch.equal(actual[0], expected[0])
        assert torch.equal(actual[2:], expected[2:])
