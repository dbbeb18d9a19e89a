"""What is done with each number by itself, beside the library's products: the launchers of csrc/cuda/pointwise*."""

from __future__ import annotations

import torch
from torch import Tensor

from hifuse_fast.backends.cuda.launch import DTYPES, launch


def gelu_backward(grad: Tensor, z: Tensor, *, activate: bool = False) -> tuple[Tensor, Tensor | None]:
    """The gradient of z, the input of GELU, of that of GELU, in the dtype of z; and gelu(z) where it is asked for."""
    z, dz = z.contiguous(), torch.empty_like(z, memory_format=torch.contiguous_format)
    activated = torch.empty_like(dz) if activate else None
    launch("gelu_backward", (DTYPES[z.dtype], z.numel()), (), (grad.to(z.dtype).contiguous(), z), (dz, activated))
    return dz, activated


def mixer_depthwise(
    z: Tensor, taps: Tensor, added: Tensor | None, out: Tensor, *, gelu: bool = True, before: Tensor | None = None
) -> Tensor:
    """Write added + gelu(conv(z)) to `out`, without GELU added + conv(z), and return that.

    Args:
        z: [B, H, W, C], contiguous.
        taps: [9, C], contiguous, of the dtype of z: the 3x3 filter of each channel.
        added: like z, or None for zeros.
        out: like z.
        before: like z, a place for what goes into GELU; or None.
    """
    sizes = (DTYPES[z.dtype], *z.shape, int(gelu))
    launch("mixer_depthwise", sizes, (), (z, taps, added), (out, before))
    return out
