"""What the tests of window attention share: kernels, the calls they are tested with, parity of outputs and gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from hifuse_fast.ops import window_attention
from hifuse_fast.testing import assert_within_rule, nan_poisoned_empty
from tests.support.kernels import device_of, kernels

NATIVE = kernels("window_attention", "native")
TRITON = kernels("window_attention", "triton")
CUDA = kernels("window_attention", "cuda")
KERNELS = [*NATIVE, *TRITON, *CUDA]


@dataclass(frozen=True)
class Case:
    """A call, named by what it is there for."""

    name: str
    shape: tuple[int, int, int]  # B, H, W
    num_heads: int
    head_dim: int
    window_size: int = 7
    shift_size: int = 0
    scale: float | None = None
    bias: bool = True

    def options(self) -> dict[str, object]:
        return {
            "num_heads": self.num_heads,
            "window_size": self.window_size,
            "shift_size": self.shift_size,
            "scale": self.scale,
        }

    def tensors(self, dtype: torch.dtype, backend: str = "native") -> tuple[list[Tensor | None], Tensor]:
        """[qkv, bias_table, qkv_bias] and a gradient of the output, on the device of a backend."""
        generator = torch.Generator().manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator).to(device_of(backend), dtype)

        channels = self.num_heads * self.head_dim
        qkv = normal(*self.shape, 3 * channels)
        table = normal((2 * self.window_size - 1) ** 2, self.num_heads)
        return [qkv, table, normal(3 * channels) if self.bias else None], normal(*self.shape, channels)


CASES = [
    Case("stage 3 of HiFuse, shifted", (2, 14, 14), 12, 32, shift_size=3),
    Case("one shifted window, as stage 4", (2, 7, 7), 2, 32, shift_size=3),
    Case("padded both ways, odd everything", (2, 9, 13), 3, 17, shift_size=2, scale=0.3),
    Case("smaller than a window", (3, 5, 3), 2, 8, shift_size=6),
    Case("padding without a bias", (1, 8, 6), 1, 32, shift_size=3, bias=False),
    Case("largest window and a long row of scores", (1, 18, 17), 2, 24, window_size=16, shift_size=5),
    Case("largest head", (1, 4, 8), 2, 128, window_size=4, shift_size=1),
    Case("window of one token", (1, 3, 5), 2, 16, window_size=1),
    Case("window of two", (2, 5, 4), 1, 9, window_size=2, shift_size=1, scale=2.0),
    Case("many windows to a chunk", (2, 33, 40), 1, 8, window_size=3, shift_size=1),
]
# What Triton's interpreter, where there is no GPU, computes in a second or two.
TRITON_CASES = [
    Case("as stage 3 of HiFuse, shifted", (1, 14, 14), 1, 32, shift_size=3),
    replace(CASES[1], num_heads=1),
    Case("padded both ways, odd everything", (2, 6, 9), 2, 17, window_size=5, shift_size=2, scale=0.3),
    replace(CASES[3], num_heads=1),
    *CASES[4:5],
    Case("two blocks of tokens to a window", (1, 8, 11), 1, 24, window_size=9, shift_size=4, scale=0.5),
    *CASES[6:9],
]
# Of each CUDA kernel: windows that are one block of tokens, and those of any size, with each width of a head's tile.
CUDA_CASES = [
    Case("whole windows, shifted", (1, 14, 14), 1, 32, shift_size=3),
    Case("whole windows, padded both ways", (2, 9, 13), 2, 32, shift_size=2, scale=0.3),
    *CASES[1:2],
    *CASES[4:5],
    replace(CASES[3], num_heads=1),
    Case("padded both ways, three chunks of a head", (2, 6, 9), 2, 24, window_size=5, shift_size=2, scale=0.3),
    Case("two blocks of tokens to a window, the last one short", (1, 8, 11), 1, 40, window_size=9, shift_size=4, scale=0.5),
    Case("a head of 96", (1, 5, 4), 1, 96, window_size=4, shift_size=1, bias=False),
    replace(CASES[6], num_heads=1),
    *CASES[7:8],
    Case("window of two", (2, 5, 4), 1, 16, window_size=2, scale=2.0),
]


def named(cases: list[Case]) -> object:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def run(case: Case, tensors: list[Tensor | None], grad: Tensor, backend: str, dtype: torch.dtype) -> list[Tensor]:
    """The output and the gradients of qkv, the table and the bias."""
    leaves = [None if t is None else t.to(dtype).requires_grad_() for t in (None if t is None else t.clone() for t in tensors)]
    out = window_attention(leaves[0], leaves[1], qkv_bias=leaves[2], backend=backend, **case.options())
    wanted = [leaf for leaf in leaves if leaf is not None]
    grads = torch.autograd.grad(out, wanted, grad.to(dtype), allow_unused=True)
    return [out.detach(), *(torch.zeros_like(x) if g is None else g for x, g in zip(wanted, grads, strict=True))]


def check_parity(case: Case, dtype: torch.dtype, kernel: str) -> None:
    tensors, grad = case.tensors(dtype, kernel)
    with nan_poisoned_empty():
        actual = run(case, tensors, grad, kernel, dtype)
    eager = run(case, tensors, grad, "reference", dtype)
    exact = run(case, tensors, grad, "reference", torch.float64)
    for name, *results in zip(("out", "dqkv", "dtable", "dqkv_bias"), actual, eager, exact, strict=False):
        assert_within_rule(*results, what=name)
