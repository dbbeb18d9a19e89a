"""The mixer in CUDA C++: the product over the taps of a dense convolution, a kernel of its own for the depthwise one.

The backward is composed: GELU's derivative, then the gradients of the convolution. Those of a dense one are the library's. Of
the depthwise one, that of the map is the same kernel with the taps turned round, and those of the filters are PyTorch's sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.backends.cuda import pointwise
from hifuse_fast.backends.cuda.launch import begins_aligned
from hifuse_fast.backends.cuda.launch import why_not as why_not_cuda
from hifuse_fast.backends.cuda.product import product


def why_not(*, device: torch.device, dtype: torch.dtype, algorithm: str = "auto", **_: Any) -> str | None:
    """The reason the CUDA kernels cannot serve this call, or None."""
    if algorithm not in ("auto", "direct"):
        return f"its convolution is the direct one (algorithm 'auto' or 'direct'), not {algorithm!r}"
    return why_not_cuda(device, dtype)


def forward(z: Tensor, weight: Tensor, *, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """See `hifuse_fast.ops.mixer`; arguments are validated, the convolution is in the dtype of `weight`.

    The second result is what goes into GELU, [B, H, W, C], where it is to be kept; else it is empty.
    """
    taps = taps_of(weight)
    c = weight.new_empty(z.shape) if keep else None
    out = weight.new_empty(z.shape)
    if z.dtype == weight.dtype:
        write(z, taps, out, c)
    else:
        out = z + convolve(z.to(weight.dtype), taps, None, out, c)
    return out, [] if c is None else [c]


def write(z: Tensor, taps: Tensor, out: Tensor, before: Tensor | None = None) -> Tensor:
    """z + gelu(conv(z)) into `out`, contiguous, for taps of the dtype of z."""
    return convolve(z, taps, z.contiguous(), out, before)


def convolve(z: Tensor, taps: Tensor, added: Tensor | None, out: Tensor, before: Tensor | None) -> Tensor:
    """`added` + gelu(conv(z)) into `out`, contiguous; taps as `taps_of` gives them."""
    if taps.dim() == 3:
        return product([z], taps.flatten(1), None, out, source="taps", activation="gelu", residual=added, before=before)
    into = out if begins_aligned(out) else torch.empty_like(out)
    pointwise.mixer_depthwise(z.contiguous(), taps, added, into, before=before)
    return out if into is out else out.copy_(into)


def taps_of(weight: Tensor) -> Tensor:
    """The filters in the order in which kernels read them: [C, C, 3, 3] -> [C, 9, C], or depthwise [C, 1, 3, 3] -> [9, C]."""
    channels, depth = weight.shape[:2]
    if depth < channels:
        return weight.reshape(channels, 9).t().contiguous()
    return weight.permute(0, 2, 3, 1).reshape(channels, 9, channels)


def backward(
    grad: Tensor, z: Tensor, weight: Tensor, *, kept: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of z and weight. What went into GELU was kept."""
    need_z, need_weight = needs
    dc = pointwise.gelu_backward(grad, kept[0])[0]
    if weight.shape[1] < len(weight):
        dz = _depthwise_backward(dc, weight) if need_z else None
        dweight = _depthwise_filters(dc, z).view(weight.shape) if need_weight else None
    else:
        found = torch.ops.aten.convolution_backward(
            dc.permute(0, 3, 1, 2), z.to(dc.dtype).contiguous().permute(0, 3, 1, 2),
            weight.contiguous(memory_format=torch.channels_last), None,
            [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [need_z, need_weight, False],
        )  # fmt: skip
        dz, dweight = found[0].permute(0, 2, 3, 1) if need_z else None, found[1]
    return [None if dz is None else grad + dz, dweight]


def _depthwise_backward(dc: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the convolution's map: the convolution of `dc` with the taps turned round."""
    taps = taps_of(weight).flip(0)
    return pointwise.mixer_depthwise(dc, taps, None, torch.empty_like(dc), gelu=False)


def _depthwise_filters(dc: Tensor, z: Tensor) -> Tensor:
    """[C, 9] in float32."""
    _, height, width, _ = z.shape
    dc, padded = dc.float(), F.pad(z.to(dc.dtype).float(), (0, 0, 1, 1, 1, 1))
    sums = [
        (dc * padded[:, r : r + height, c : c + width]).sum((0, 1, 2)) for r in range(3) for c in range(3)
    ]  # fmt: skip
    return torch.stack(sums, 1)
