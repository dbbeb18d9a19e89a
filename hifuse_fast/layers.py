"""The small modules that blocks are made of. Maps are channels last: [B, H, W, C]."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hifuse_fast.checks import check_rate


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` from [B, H, W, C] to [B, H', W', C'], computed in the layout of its weight.

    A 1x1 or depthwise weight fits channels last as it is. A dense larger one is channels first unless the user says
    `model.to(memory_format=torch.channels_last)`, which a GPU wants. On a CPU copying the map is less than what PyTorch does
    otherwise, which is to copy the weight at every call, and its gradient too; and oneDNN is 3 times as exact channels first.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        if self.weight.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x).permute(0, 2, 3, 1)
        return super().forward(x.contiguous()).permute(0, 2, 3, 1).contiguous()


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the channels of [B, H, W, C]."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        if self.training and x.is_cpu:
            # PyTorch's channels-last CPU kernel adds up a channel in one float32, which at 8 images of 56 x 56 already costs a
            # relative error of 4e-5; its channels-first kernel keeps 3e-7, and two copies are little in a training step.
            return super().forward(x.contiguous()).permute(0, 2, 3, 1).contiguous()
        return super().forward(x).permute(0, 2, 3, 1)


class ConvNorm(nn.Module):
    """BN(conv(x)) with "same" padding, [B, H, W, in_dim] -> [B, H, W, out_dim]; `norm=False` leaves the conv alone."""

    def __init__(
        self, in_dim: int, out_dim: int, kernel_size: int, *, bias: bool = True, norm: bool = True, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = Conv2d(in_dim, out_dim, kernel_size, padding=kernel_size // 2, bias=bias, groups=groups)
        self.bn = BatchNorm2d(out_dim) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.bn is None else self.bn(x)


class DropPath(nn.Module):
    """Stochastic depth: in training, an image's branch becomes 0 with probability `rate`, else is divided by 1 - rate.

    Source: Huang et al. 2016.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = check_rate("rate", rate)

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
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

    For a second computation of the same batch, as gradient checkpointing makes it: the statistics count a batch once.
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
