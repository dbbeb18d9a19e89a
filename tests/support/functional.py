"""What the tests of the ops with gradients share: parity of outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hifuse_fast.testing import assert_within_rule, nan_poisoned_empty
from tests.support.kernels import uniform

DTYPES = [torch.float32, torch.bfloat16, torch.float16]

Call = Callable[..., Tensor]  # (tensors by name, backend=...) -> output


def run(
    call: Call, tensors: dict[str, Tensor | None], dtype: torch.dtype, backend: str, like: torch.dtype
) -> dict[str, Tensor]:
    """The output and the gradient of each tensor, computed in `dtype` on values rounded to `like`."""
    leaves = {name: None if t is None else t.to(like).to(dtype).detach().requires_grad_() for name, t in tensors.items()}
    out = call(**leaves, backend=backend)
    grad = uniform("the gradient of the output", *out.shape).to(out.device, like).to(dtype)
    wanted = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    grads = torch.autograd.grad(out, list(wanted.values()), grad)
    return {"out": out.detach(), **{f"d{name}": g for name, g in zip(wanted, grads, strict=True)}}


def check_parity(
    call: Call, tensors: dict[str, Tensor | None], dtype: torch.dtype, kernel: str, cancelled: dict[str, float] | None = None
) -> None:
    """The kernel's output and every gradient obey the rule, in memory full of NaN, and come out the same a second time.

    cancelled: by result, the size of what cancels in it, of which one rounding in float32 is allowed besides.
    """
    eager, exact = run(call, tensors, dtype, "reference", dtype), run(call, tensors, torch.float64, "reference", dtype)
    with nan_poisoned_empty():
        actual = run(call, tensors, dtype, kernel, dtype)
    for name, value in actual.items():
        besides = torch.finfo(torch.float32).eps * (cancelled or {}).get(name, 0.0)
        assert_within_rule(value, eager[name], exact[name], what=name, besides=besides)
    again = run(call, tensors, dtype, kernel, dtype)
    assert [name for name in actual if not torch.equal(actual[name], again[name])] == []


def check_compiles(call: Call, tensors: dict[str, Tensor | None], backend: str) -> None:
    """torch.compile(fullgraph=True) gives the eager output and gradients."""
    expected = run(call, tensors, torch.float32, backend, torch.float32)
    torch._dynamo.reset()  # what other tests compiled counts to the limit of recompilations
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for name, value in run(compiled, tensors, torch.float32, backend, torch.float32).items():
        torch.testing.assert_close(value, expected[name])
