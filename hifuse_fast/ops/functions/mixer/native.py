"""The dense mixer in the compiled library, forward and backward: C++ on CPU tensors, in float32.

PyTorch's own convolution and its gradients are the largest part of a training step (docs/ladder.md). The gradient of the
filters is a product of ours, the direct one. The convolution and the gradient of its input are computed

- by Winograd's algorithm F(4x4, 3x3), ours, which transforms the filters at every call: so it pays from `FEW_PIXELS` on, and
  takes too much memory from `WIDE` channels on;
- of so many channels by a product of PyTorch's: nine neighbours of each pixel side by side, times the filters as they lie;
- of few pixels by PyTorch's convolution.

In bfloat16 the reference is taken: CPUs that compute in bfloat16 do so in PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.backends.native.library import why_not_native

FEW_PIXELS = 1024  #: of the whole batch
WIDE = 2048  #: channels; transformed filters of so many take 0.6 GB


def why_not(*, device: torch.device, dtype: torch.dtype, depthwise: bool = False, **_: Any) -> str | None:
    """The reason the compiled library cannot serve this call, or None."""
    if depthwise:
        return "there is no native kernel for the depthwise convolution and its gradients"
    if device.type == "cpu" and dtype != torch.float32:
        return f"its products are of float32, not {dtype}"
    return why_not_native(device=device, dtype=dtype)


def forward(z: Tensor, weight: Tensor, *, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """See `hifuse_fast.ops.mixer`; arguments are validated.

    The second result is what goes into GELU, [B, H, W, C], where it is to be kept.
    """
    convolved = _convolve(z.contiguous(), weight.contiguous())
    return F.gelu(convolved).add_(z), [convolved] if keep else []


def shapes(z: Tensor, weight: Tensor, *, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """What `forward` gives, but for the values."""
    return z.new_empty(z.shape), [z.new_empty(z.shape)] if keep else []


def backward(
    grad: Tensor, z: Tensor, weight: Tensor, *, kept: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of z and weight. What went into GELU was kept."""
    (convolved,), (need_z, need_weight) = kept, needs
    dc = torch.ops.aten.gelu_backward(grad.contiguous(), convolved)
    dz = _gradient_of_map(dc, weight.contiguous()).add_(grad) if need_z else None
    dweight = torch.ops.hifuse_fast.mixer_filters_gradient(dc, z.contiguous()) if need_weight else None
    return [dz, dweight]


def _convolve(z: Tensor, weight: Tensor) -> Tensor:
    if z.shape[3] >= WIDE:
        return _neighbours(z).mm(weight.flatten(1).t()).view(z.shape)
    if z.shape[:3].numel() >= FEW_PIXELS:
        found: Tensor = torch.ops.hifuse_fast.mixer_convolution(z, weight, False)
        return found
    return _channels_last(F.conv2d(_channels_first(z), weight, padding=1))


def _gradient_of_map(dc: Tensor, weight: Tensor) -> Tensor:
    batch, height, width, channels = dc.shape
    if channels >= WIDE:
        taps = dc.view(-1, channels).mm(weight.flatten(1)).view(batch, height * width, 9 * channels)
        # Each tap's share is added to its neighbour.
        return _channels_last(F.fold(taps.transpose(1, 2), (height, width), 3, padding=1)).view(dc.shape)
    if dc.shape[:3].numel() >= FEW_PIXELS:
        found: Tensor = torch.ops.hifuse_fast.mixer_convolution(dc, weight, True)
        return found
    return _channels_last(F.conv_transpose2d(_channels_first(dc), weight, padding=1))


def _neighbours(z: Tensor) -> Tensor:
    """[B * H * W, C * 9]: of each pixel the nine around it, in the order of a filter's taps; zeros outside of the map."""
    taps = F.unfold(z.permute(0, 3, 1, 2), 3, padding=1)  # [B, C * 9, H * W]
    return taps.transpose(1, 2).reshape(-1, taps.shape[1])


def _channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2).contiguous()


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()
