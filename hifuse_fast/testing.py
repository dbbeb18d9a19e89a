"""What tests and benchmarks share: inputs, the golden rule of weights, and the tolerance rule.

The tolerance rule. A kernel is compared with the reference run in float64 on the same values. Its error may be at most twice
the error that the plain PyTorch reference makes in the kernel's own dtype, plus one rounding of the largest value:

    max|kernel - exact|  <=  2 max|pytorch - exact| + eps(dtype) max|exact| + tiny

tiny is the smallest normal float32: kernels may take subnormal numbers for zero, as GPUs do.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

TINY = torch.finfo(torch.float32).tiny

# How many neighbours of a call tell PyTorch's error where the one call does not: the same call on inputs that are each moved by
# one to three roundings, up or down. The rule then takes the largest of PyTorch's errors.
# - A norm of equal values is exactly 0 in PyTorch. In a kernel it is what is left of the mean, whose sum and quotient are
#   rounded, times 1 / sqrt(eps). PyTorch errs as much as soon as one of the values is moved.
# - Where three channels are nearly equal, or the scores of a softmax are large, one element decides, and PyTorch's error of one
#   call may be small by luck.
# - In float64 PyTorch is the measure itself, so its error is what the roundings of the inputs make of the result. At an input
#   scale of 1e4, they move the gradient of attention's table by several times its value.
NEIGHBOURS = 24


@dataclass(frozen=True)
class Bound:
    """What an error may be: `errors` times the error of PyTorch in the same dtype, plus `largest` times the largest value.

    None for `largest` is one rounding, plus tiny. An algorithm that errs more than the tolerance rule allows has a bound of its
    own, with the reason, in `bounds.py` of its op.
    """

    errors: float = 2
    largest: float | None = None


RULE = Bound()


@dataclass(frozen=True)
class Errors:
    """Largest absolute errors against the exact result, and what the rule allows."""

    kernel: float
    pytorch: float
    allowed: float
    largest: float

    @property
    def ok(self) -> bool:
        return self.kernel <= self.allowed  # False for NaN


def errors(actual: Tensor, pytorch: Tensor, exact: Tensor, bound: Bound = RULE) -> Errors:
    """The errors of `actual` and of `pytorch` (both in the kernel's dtype) against `exact` (float64), under a bound."""
    if actual.shape != exact.shape or actual.dtype != pytorch.dtype:
        raise AssertionError(f"got {actual.dtype} {list(actual.shape)}, expected {pytorch.dtype} {list(exact.shape)}")
    if exact.numel() == 0:
        return Errors(0.0, 0.0, 0.0, 0.0)
    exact = exact.double()
    kernel = (actual.double() - exact).abs().max().item()
    eager = (pytorch.double() - exact).abs().max().item()
    largest = exact.abs().max().item()
    rounding = torch.finfo(actual.dtype).eps * largest + TINY if bound.largest is None else bound.largest * largest
    return Errors(kernel, eager, bound.errors * eager + rounding, largest)


def assert_within_rule(
    actual: Tensor, pytorch: Tensor, exact: Tensor, what: str = "output", besides: float = 0.0, bound: Bound = RULE
) -> None:
    """Raise AssertionError unless `actual` obeys the tolerance rule (see above), or another bound.

    Args:
        actual: of the kernel.
        pytorch: of plain PyTorch in the kernel's dtype.
        exact: of plain PyTorch in float64.
        what: the name of the result, for the message.
        besides: an absolute error that is allowed too.
        bound: the bound of the op's algorithm.
    """
    e = errors(actual, pytorch, exact, bound)
    own = f"PyTorch's own {e.pytorch:.3e}, largest {e.largest:.3e}"
    assert e.kernel <= e.allowed + besides, f"{what}: error {e.kernel:.3e}, allowed {e.allowed + besides:.3e} ({own})"


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """max|actual - exact| / max|exact|."""
    if exact.numel() == 0:
        return 0.0
    exact = exact.double()
    return ((actual.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-300)).item()


def wrong_gradients(
    actual: Mapping[str, Tensor], pytorch: Sequence[Mapping[str, Tensor]], exact: Mapping[str, Tensor], eps: float
) -> list[str]:
    """The weights whose gradients, in a training step, are further from `exact` (float64) than rounding explains.

    An error is the l2 norm of the difference over the l2 norm of the exact gradient. `pytorch` has the gradients of eager
    PyTorch in the same dtype: of this step, and of steps on `moved` images where one step does not tell its error. A ReLU or a
    maximum whose inputs are nearly equal may decide otherwise than in float64, which moves every gradient before it ten times
    as far as rounding does. Whether it happens is chance. The largest of PyTorch's errors counts. `eps`, one rounding, is added
    to each bound.

    - All gradients, as one vector, may be off by three times PyTorch's error. Otherwise the answer ends with "all of them".
    - The gradient of one weight may be off by six times PyTorch's error, of this weight or in the median over all weights,
      whichever is larger. The gradients of the gates' weights are small differences of large numbers, where one of the two can
      be right by chance: for ten images in a narrow network both were off by 0.15 to 0.18 in the geometric mean, but for one
      image they differed by a factor of 7.
    - A gradient counts as no smaller than one rounding of the mean gradient. The gradient of a bias just before a batch norm is
      zero, and what comes out is rounding.
    """
    total = l2_norm(exact.values())
    smallest = eps * total / math.sqrt(len(exact))
    sizes = {name: l2_norm([gradient]) + smallest for name, gradient in exact.items()}
    own, *steps = ({name: l2_norm([each[name].double() - exact[name]]) for name in exact} for each in (actual, *pytorch))
    plain = {name: max(each[name] for each in steps) for name in exact}
    usual = median(plain[name] / sizes[name] for name in exact)
    wrong = [name for name in exact if not own[name] <= sizes[name] * (6 * max(plain[name] / sizes[name], usual) + eps)]
    if not math.hypot(*own.values()) <= 3 * max(math.hypot(*each.values()) for each in steps) + eps * total:
        wrong.append("all of them")
    return wrong


def moved(values: Tensor, seed: int) -> Tensor:
    """`values`, each moved by one rounding, up or down, as `seed` says."""
    signs = 2 * torch.randint(2, values.shape, generator=torch.Generator().manual_seed(seed)) - 1
    return values * (1 + torch.finfo(values.dtype).eps * signs.to(values))


def l2_norm(tensors: Iterable[Tensor]) -> float:
    """Of all their values as one vector."""
    return math.hypot(*(tensor.double().norm().item() for tensor in tensors))


@contextlib.contextmanager
def nan_poisoned_empty() -> Iterator[None]:
    """Within the block, torch.empty and its like return memory full of NaN, so a forgotten element cannot hide."""
    deterministic: Any = torch.utils.deterministic  # a module whose attribute is a property
    mode, fill = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode)
        deterministic.fill_uninitialized_memory = fill


def golden_uniform(name: str, shape: tuple[int, ...]) -> Tensor:
    """The u of the golden rule: uniform in [0, 1), float64, row-major, from a PCG64 that is seeded with the CRC of `name`."""
    words = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape, dtype=np.int64)))
    words >>= np.uint64(11)  # in place, as what follows: fresh memory costs more than the numbers in it
    uniform = words.astype(np.float64)
    uniform *= 2.0**-53
    return torch.from_numpy(uniform).reshape(shape)


def golden_image(batch: int, height: int, width: int) -> Tensor:
    """The golden image [B, 3, H, W] in float64."""
    return 2 * golden_uniform(f"image-{height}x{width}-b{batch}", (batch, 3, height, width)) - 1


def golden_weights(model: nn.Module) -> None:
    """Fill every floating parameter and buffer of `model` by the golden rule, in place; integer buffers stay."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(golden_tensor(name, tuple(tensor.shape)))


def golden_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """The value of the state_dict entry `name` under the golden rule, float64."""
    u = golden_uniform(name, shape)
    if name.endswith("running_var"):
        return u.add_(0.5)
    c = u.mul_(2).sub_(1)
    if name.endswith("running_mean"):
        return c.mul_(0.1)
    if name.endswith("relative_position_bias_table"):
        return c.mul_(0.5)
    if name.endswith(".weight") and len(shape) == 1:
        return c.mul_(0.2).add_(1)
    if name.endswith(".bias"):
        return c.mul_(0.1)
    fan_in = int(np.prod(shape[1:], dtype=np.int64))
    return c.mul_(float((3 / fan_in) ** 0.5))
