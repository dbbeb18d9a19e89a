"""What native prepared ops have in common: when the compiled library serves them, and where their tensors of a file lie."""

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


def own(tensor: Tensor) -> Tensor:
    """A copy of a tensor of a file: in the file's mapping it lies unaligned, and changes with the file."""
    packed = library.lib is not None and tensor.dim() == 1 and tensor.dtype in (torch.float32, torch.bfloat16)
    copy: Tensor = torch.ops.hifuse_fast.copy_weight(tensor) if packed else tensor.clone()  # the op's memory has larger pages
    return copy
