"""The small modules that blocks are made of. Maps are channels last: [B, H, W, C]."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hifuse_fast import ops
from hifuse_fast.checks import check_rate
from hifuse_fast.ops.functions.batch_norm.reference import finish
from hifuse_fast.ops.functions.mixer.reference import convolve


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` from [B, H, W, C] to [B, H', W', C'], computed in the layout of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return convolve(super().forward, x, self.weight)


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the channels of [B, H, W, C], and what follows it: see `hifuse_fast.ops.batch_norm`."""

    def forward(self, x: Tensor, activation: str = "none", pool: bool = False, residual: Tensor | None = None) -> Tensor:
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # a plain average over all batches
                momentum = 1.0 / float(self.num_batches_tracked)
        kept = (self.running_mean, self.running_var) if not self.training or self.track_running_stats else (None, None)
        return ops.batch_norm(
            x, self.weight, self.bias, *kept, training=self.training or self.running_mean is None, momentum=momentum,
            eps=self.eps, activation=activation, pool=pool, residual=residual,
        )  # fmt: skip


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` over the channels of [B, H, W, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight, self.bias, eps=self.eps)


class ConvNorm(nn.Module):
    """act(BN(conv(x))) with "same" padding, [B, H, W, in_dim] -> [B, H, W, out_dim]; `norm=False` leaves the conv alone.

    A call may also ask for what `BatchNorm2d` does after the norm: `activation`, `pool`, `residual`.
    """

    def __init__(
        self, in_dim: int, out_dim: int, kernel_size: int, *, bias: bool = True, norm: bool = True, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = Conv2d(in_dim, out_dim, kernel_size, padding=kernel_size // 2, bias=bias, groups=groups)
        self.bn = BatchNorm2d(out_dim) if norm else None

    def forward(self, x: Tensor, **after: Any) -> Tensor:
        x = self.conv(x)
        return x if self.bn is None else batch_norm(self.bn, x, **after)


def batch_norm(
    norm: nn.Module, x: Tensor, activation: str = "none", pool: bool = False, residual: Tensor | None = None
) -> Tensor:
    """`norm` of a map. It is a `BatchNorm2d`, or a module for [B, C, H, W] that a user put there, as `nn.SyncBatchNorm`."""
    if isinstance(norm, BatchNorm2d):
        out: Tensor = norm(x, activation, pool, residual)
        return out
    return finish(norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), activation, pool, residual)


class DropPath(nn.Module):
    """Stochastic depth. In training an image's branch becomes 0 with probability `rate`; otherwise it is divided by 1 - rate.

    Source: Huang et al. 2016.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = check_rate("rate", rate)

    @property
    def active(self) -> bool:
        """Whether a call does anything."""
        return self.rate > 0.0 and self.training

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return x
        keep = 1.0 - self.rate
        draw = torch.rand((x.shape[0],) + (1,) * (x.dim() - 1), dtype=x.dtype, device=x.device)
        return x / keep * (keep + draw).floor()

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zero-pad [B, H, W, C] at the right and the bottom, so that H and W are multiples of `multiple`."""
    bottom, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    return F.pad(x, (0, 0, 0, right, 0, bottom)) if bottom or right else x


@contextlib.contextmanager
def frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Within the block of code, batch norms in training leave their running statistics as they are.

    Gradient checkpointing computes a batch a second time, and the statistics shall count it once.
    """
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
