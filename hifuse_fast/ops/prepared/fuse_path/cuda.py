"""The fuse path in CUDA C++, as one kernel: csrc/cuda/fuse_path.cuh."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.backends.cuda import blocks
from hifuse_fast.backends.cuda.launch import DTYPES, launch
from hifuse_fast.ops.prepared.base import PreparedOp


def whole(*, local_linear: PreparedOp, global_linear: PreparedOp, up: PreparedOp | None, fuse: PreparedOp) -> FusePath | None:
    """The path of these prepared ops of the backend "cuda", its weights in the kernel's order; None where none serves it."""
    weight, linears = fuse.packed()["weight"], [local_linear.packed(), global_linear.packed()]
    channels, room = len(weight), blocks.room(len(weight))
    of_fused = None if up is None else up.packed()
    before = 0 if of_fused is None else of_fused["weight"].shape[1]
    if not blocks.serve(weight.dtype, channels) or before % 8 or before > room // 2:
        return None
    parts = list(weight.split(channels, 1))
    if of_fused is not None:
        parts = [*parts[1:], parts[0]]  # w_f comes first in a row of the network, and last in one of the kernel
    squares = [blocks.operands(each, room, room) for each in (*(linear["weight"] for linear in linears), *parts)]
    biases = [linear["bias"] for linear in (*linears, of_fused or linears[0], fuse.packed())]
    tensors = {
        "weights": torch.stack(squares),
        "biases": torch.stack([F.pad(bias.float(), (0, room - channels)) for bias in biases]),
    }
    if of_fused is not None:
        tensors["up"] = blocks.operands(of_fused["weight"], room, (room // 2 + 31) // 32 * 32)
    return FusePath(tensors, eps=fuse.options["eps"], before=before)


class FusePath(PreparedOp):
    """See `prepare_fuse_path`."""

    weights: Tensor  # of w_l and w_g, and of the parts of a row: w_l, w_g, w_f
    biases: Tensor  # of w_l, w_g and w_f, and of the result

    @torch.no_grad()
    def forward(
        self, local_map: Tensor, global_map: Tensor, fused_map: Tensor | None, out: Tensor, w_f: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        maps = [None if each is None else each.contiguous() for each in (local_map, global_map, fused_map)]
        sizes = (DTYPES[out.dtype], *out.shape, self.options["before"])
        launch(
            "fuse_path", sizes, (self.options["eps"],), (*maps, self.weights, self._buffers.get("up"), self.biases), (out, w_f)
        )  # fmt: skip
        return out, w_f
