"""The mixer in the compiled library: C++ on CPU tensors (csrc/cpu/mixer*.cpp)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
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


class Mixer(PreparedOp):
    """See `prepare_mixer`."""

    weight: Tensor
    scale: Tensor  # of int8

    @staticmethod
    def resolve(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Any]:
        channels, depth = tensors["weight"].shape[:2]
        if options["input_scale"] is not None:
            return {**options, "algorithm": _int8_algorithm(options["algorithm"], channels)}
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
            filters = weight.unflatten(1, (-1, 3, 3))
            return {"weight": torch.ops.hifuse_fast.pack_mixer_int8(filters, ALGORITHMS[options["algorithm"]]), "scale": scale}
        return {"weight": torch.ops.hifuse_fast.pack_mixer(tensors["weight"], dtype, ALGORITHMS[options["algorithm"]])}

    def __init__(self, tensors: Mapping[str, Tensor], **options: Any) -> None:
        super().__init__(tensors, **options)
        self._inverse = None if options["input_scale"] is None else 1 / options["input_scale"]
        self._algorithm = ALGORITHMS[options["algorithm"]]

    def forward(self, z: Tensor, out: Tensor | None = None) -> Tensor:
        out = torch.empty_like(z) if out is None else out
        if self._inverse is None:
            call(torch.ops.hifuse_fast.mixer_out.default, z, self.weight, out, self._algorithm)
        else:
            call(torch.ops.hifuse_fast.mixer_int8_out.default, z, self.weight, self.scale, out, self._inverse, self._algorithm)
        return out


def _int8_algorithm(asked: str, channels: int) -> str:
    """Winograd's in integers takes 4/9 of the products, and int16; by count it does not pay where CPUs multiply bytes."""
    auto = "direct" if library.multiplies_bfloat16() or channels > int8.MOST_CHANNELS else "winograd2"
    return "int8_winograd2" if (auto if asked == "auto" else asked) == "winograd2" else "int8"
