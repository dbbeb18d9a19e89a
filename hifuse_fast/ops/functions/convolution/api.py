"""Convolutions in compiled code that serves every batch and size.

To choose among its convolutions, PyTorch asks on a CPU in float32 whether the batch is 16 or more, and of one image how many
numbers it has. Compiled code would be bound to the answer. An operator of ours is not asked; it calls PyTorch's as it runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hifuse_fast.backends import transforms
from hifuse_fast.backends.select import autocast_dtype, current_backend, kernels_on
from hifuse_fast.ops.functions.convolution import reference
from hifuse_fast.ops.functions.fused import Fused, Product

MANY, LARGE = 16, 20480  #: images, and numbers of one image: PyTorch's convolutions change there


def is_bound(x: Tensor) -> bool:
    """Whether a convolution of this map by PyTorch's operator would bind what is traced to its batch or its size.

    Transforms of torch.func cannot see through an operator of ours, and an exported program of the reference has none.
    """
    if not torch.compiler.is_compiling() or not x.is_cpu or x.dtype != torch.float32 or autocast_dtype(x) is not None:
        return False
    if transforms.active() or transforms.replaced() or (torch.compiler.is_exporting() and current_backend() == "reference"):
        return False
    from torch.fx.experimental.symbolic_shapes import statically_known_true as known

    batch = x.size(0)
    if known(batch == 1):
        return not (known(x.numel() > LARGE) or known(x.numel() <= LARGE))
    return not (known(batch >= MANY) or known(batch < MANY))


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: int, groups: int) -> Tensor:
    """The convolution of a map [B, H, W, C], of stride 1, as one operator: where `is_bound` says so."""
    kernels = kernels_on("convolution", "native", x.device)
    return _FUSED(kernels, (x, weight, bias), {"padding": padding, "groups": groups})[0]


def _products(x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: int, groups: int) -> list[Product]:
    batch, height, width, _ = x.shape
    rows, columns = (n + 2 * padding - side + 1 for n, side in zip((height, width), weight.shape[2:], strict=True))
    return [Product(2 * batch * rows * columns * weight.numel(), (0,), (1,), groups)]


_FUSED = Fused(
    "convolution",
    "Tensor x, Tensor weight, Tensor? bias",
    "int padding, int groups",
    reference.convolution,
    products=_products,
)
