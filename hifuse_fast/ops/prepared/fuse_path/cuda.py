"""The fuse path in CUDA C++, as one kernel: csrc/cuda/fuse_path.cuh."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.backends.cuda import blocks
from hifuse_fast.backends.cuda.blocks import NARROW
from hifuse_fast.backends.cuda.launch import DTYPES, begins_aligned, launch
from hifuse_fast.backends.cuda.launch import why_not as why_not_cuda
from hifuse_fast.backends.tape import kept
from hifuse_fast.ops.prepared.base import PreparedOp


def why_not(*, device: torch.device, dtype: torch.dtype, **_: Any) -> str | None:
    """The reason the CUDA kernels cannot serve the parts, or None."""
    return why_not_cuda(device, dtype)


def whole(*, local_linear: PreparedOp, global_linear: PreparedOp, up: PreparedOp | None, fuse: PreparedOp) -> FusePath | None:
    """The path of these prepared ops of the backend "cuda", its weights in the kernel's order; None where none serves it.

    It pays where weights stay in the cache of a multiprocessor: in the first stage, which has no fused map.
    """
    weight, linears = fuse.packed()["weight"], [local_linear.packed(), global_linear.packed()]
    channels = len(weight)
    if up is not None or channels > NARROW or not blocks.serve(weight.dtype, channels):
        return None
    squares = [*(linear["weight"] for linear in linears), *weight.split(channels, 1)]
    biases = [linear["bias"].float() for linear in (*linears, fuse.packed())]
    tensors = {
        "weights": torch.stack([blocks.operands(square, NARROW, NARROW) for square in squares]),
        "biases": torch.stack([F.pad(bias, (0, NARROW - channels)) for bias in biases]),
    }
    return FusePath(tensors, eps=fuse.options["eps"])


class FusePath(PreparedOp):
    """See `prepare_fuse_path`."""

    weights: Tensor  # of both linears, and of both parts of a row
    biases: Tensor  # of both linears, and of the result

    def serves(self, x: Tensor) -> bool:
        """Whether it stands for its parts where a map is x."""
        return blocks.taken("fuse_path", x)

    @torch.no_grad()
    def forward(self, local_map: Tensor, global_map: Tensor, out: Tensor | None = None) -> Tensor:
        maps = [local_map.contiguous(), global_map.contiguous()]
        out = torch.empty_like(maps[0]) if out is None else out
        if kept("fuse_path", local_map=maps[0], global_map=maps[1], **self.packed(), out=out, **self.options):
            return out
        into = out if begins_aligned(out) else torch.empty_like(out)
        sizes = (DTYPES[out.dtype], *out.shape)
        launch("fuse_path", sizes, (self.options["eps"],), (*maps, self.weights, self.biases), (into,))
        return out if into is out else out.copy_(into)
