"""The mixer in the compiled library: C++ on CPU tensors (csrc/cpu/mixer*.cpp)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.backends.native import library
from hifuse_fast.backends.native.algorithms import ALGORITHMS
from hifuse_fast.backends.native.library import why_not_native
from hifuse_fast.backends.tape import call
from hifuse_fast.ops.prepared import int8
from hifuse_fast.ops.prepared.base import PreparedOp

why_not = why_not_native

# Channels from which F(4x4)'s filters are too large to be transformed ahead: those of 2304 take 0.7 GB in float32, 0.5 in
# bfloat16, and longer to read for one image. In float32 they are transformed at the call; bfloat16 keeps to F(2x2).
WIDE = 2048
CHUNK = 64  # channels whose taps lie together in int8, see csrc/cpu/int8.h


class Mixer(PreparedOp):
    """See `prepare_mixer`."""

    weight: Tensor
    scale: Tensor  # of int8

    @staticmethod
    def resolve(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Any]:
        if options["input_scale"] is not None:
            return PreparedOp.resolve(tensors, dtype, **options)
        channels, depth = tensors["weight"].shape[:2]
        if depth < channels:
            return {**options, "algorithm": "depthwise"}
        algorithm, wide = options["algorithm"], channels >= WIDE
        if algorithm == "auto" and dtype == torch.bfloat16:
            algorithm = "direct" if library.has_tiles() else "winograd2" if wide else "winograd4"
        elif algorithm == "auto":
            algorithm = "winograd4"
        if algorithm == "winograd4" and wide and dtype == torch.float32:
            algorithm = "winograd4_at_call"
        return {**options, "algorithm": algorithm}

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        if options["input_scale"] is not None:
            weight, scale = int8.quantise_weight(tensors["weight"].flatten(1), options["input_scale"])
            return {"weight": torch.ops.hifuse_fast.pack_int8(_taps_of_chunks(weight), 0), "scale": scale}
        return {"weight": torch.ops.hifuse_fast.pack_mixer(tensors["weight"], dtype, ALGORITHMS[options["algorithm"]])}

    def __init__(self, tensors: Mapping[str, Tensor], **options: Any) -> None:
        super().__init__(tensors, **options)
        self._int8 = options["input_scale"] is not None
        self._number = 1 / options["input_scale"] if self._int8 else ALGORITHMS[options["algorithm"]]

    def forward(self, z: Tensor, out: Tensor | None = None) -> Tensor:
        out = torch.empty_like(z) if out is None else out
        if self._int8:
            call(torch.ops.hifuse_fast.mixer_int8_out.default, z, self.weight, self.scale, out, self._number)
        else:
            call(torch.ops.hifuse_fast.mixer_out.default, z, self.weight, out, self._number)
        return out


def _taps_of_chunks(weight: Tensor) -> Tensor:
    """[C, 9 C], the taps of each channel together -> [C, K / 64 * 9 * 64], the channels of each tap in chunks of 64."""
    by_channel: Tensor = weight.unflatten(1, (-1, 9))
    filled = F.pad(by_channel, (0, 0, 0, -by_channel.shape[1] % CHUNK))
    chunks: Tensor = filled.unflatten(1, (-1, CHUNK))
    return chunks.transpose(2, 3).flatten(1)
