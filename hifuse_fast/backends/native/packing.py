"""How native prepared ops pack their tensors for the compiled library, where those lie, and when it serves them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.native import library


def why_not_native(*, device: torch.device, dtype: torch.dtype, **_: Any) -> str | None:
    """The reason the compiled library cannot serve a prepared op, or None."""
    if device.type != "cpu":
        return f"there is no native kernel for {device.type} tensors yet"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"the kernels serve float32 and bfloat16, not {dtype}"
    return None if library.lib is not None else library.why_missing


def pack_matrix(weight: Tensor, dtype: torch.dtype, block: int | None = None) -> Tensor:
    """[N, K] in panels of 32 columns (csrc/cpu/panel.h), with `block` the panels of so many of the depth after one another."""
    packed: Tensor = torch.ops.hifuse_fast.pack_linear(weight.to(dtype).contiguous(), block or 32 * -(-weight.shape[1] // 32))
    return packed


def pack_factors(weight: Tensor) -> Tensor:
    """[N, K], K even, for Strassen's product (csrc/cpu/strassen.h): the seven factors of each pair of panels, in float32."""
    columns, depth = weight.shape
    pairs = torch.nn.functional.pad(weight.float(), (0, 0, 0, -columns % 64)).view(-1, 2, 32, 2, depth // 2)
    (b11, b21), (b12, b22) = (panel.unbind(2) for panel in pairs.unbind(1))
    factors = torch.stack((b11 + b22, b21 - b11, b22, b21 + b22, b12 - b22, b11, b11 + b12), 1)
    return pack_matrix(factors.flatten(0, 2), torch.float32)


def pack_floats(tensor: Tensor) -> Tensor:
    """What is no matrix of a product stays as it is, in the type of the arithmetic; in new memory."""
    return tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def own(tensor: Tensor) -> Tensor:
    """A copy of a tensor of a file: in the file's mapping it lies unaligned, and changes with the file."""
    packed = library.lib is not None and tensor.dim() == 1 and tensor.dtype in (torch.float32, torch.bfloat16)
    copy: Tensor = torch.ops.hifuse_fast.copy_weight(tensor) if packed else tensor.clone()  # the op's memory has larger pages
    return copy
