"""The mixer in the compiled library: C++ on CPU tensors (csrc/cpu/mixer*.cpp)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.native.packing import pack_floats, pack_matrix, why_not_native
from hifuse_fast.backends.native.tape import call
from hifuse_fast.ops.prepared.base import PreparedOp

why_not = why_not_native

DEPTHWISE, DIRECT = 0, 1  # in place of the outputs of a Winograd tile along an axis, 2 or 4
# Channels from which F(4x4)'s filters are too large to be transformed ahead: those of 2304 take 0.7 GB in float32, 0.5 in
# bfloat16, and longer to read for one image. In float32 they are transformed at the call; bfloat16 keeps to F(2x2).
WIDE = 2048


class Mixer(PreparedOp):
    """See `prepare_mixer`."""

    weight: Tensor
    kind: Tensor  # (channels, tile)

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        weight = tensors["weight"]
        channels, depth = weight.shape[:2]
        tile = DEPTHWISE if depth < channels else _tile(options["algorithm"], dtype, channels)
        if tile == DEPTHWISE:
            packed = pack_floats(weight.flatten(1).T)
        elif tile == DIRECT:
            packed = torch.cat([pack_matrix(weight[:, :, i // 3, i % 3], dtype) for i in range(9)])
        elif tile == 4 and dtype == torch.float32 and channels >= WIDE:
            packed = pack_matrix(weight.flatten(1), dtype)
        else:
            packed = torch.ops.hifuse_fast.pack_winograd(pack_floats(weight), tile, dtype == torch.bfloat16)
        return {"weight": packed, "kind": torch.tensor([channels, tile])}

    def __init__(self, tensors: Mapping[str, Tensor], **options: Any) -> None:
        super().__init__(tensors, **options)
        self.channels, self.tile = self.kind.tolist()

    def forward(self, z: Tensor, out: Tensor | None = None) -> Tensor:
        out = torch.empty_like(z) if out is None else out
        written: Tensor = call(torch.ops.hifuse_fast.mixer.default, z, self.weight, out, self.channels, self.tile)
        return written


def _tile(algorithm: str, dtype: torch.dtype, channels: int) -> int:
    if algorithm == "auto":
        return 2 if dtype == torch.bfloat16 and channels >= WIDE else 4
    return {"direct": DIRECT, "winograd2": 2, "winograd4": 4}[algorithm]
