"""The prepared mixer in plain PyTorch: the definition every kernel is tested against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.ops.functions.mixer.reference import mixer
from hifuse_fast.ops.prepared import int8
from hifuse_fast.ops.prepared.base import Layout, PreparedOp, write


class Mixer(PreparedOp):
    """See `prepare_mixer`."""

    weight: Tensor  # in int8 as a matrix, [C, 9 C]
    scale: Tensor  # of int8

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        if options["input_scale"] is None:
            return PreparedOp.pack(tensors, dtype)
        weight, scale = int8.quantise_weight(tensors["weight"].flatten(1), options["input_scale"])
        return {"weight": weight, "scale": scale}

    @staticmethod
    def layout(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, **options: Any) -> Layout:
        if options["input_scale"] is None:
            return PreparedOp.layout(shapes, dtype)
        channels, depth = shapes["weight"][:2]
        return {"weight": ((channels, 9 * depth), torch.int8), "scale": ((channels,), torch.float32)}

    @torch.no_grad()
    def forward(self, z: Tensor, out: Tensor | None = None) -> Tensor:
        if self.options["input_scale"] is None:
            return write(mixer(z, self.weight), out)
        rows = int8.quantise(self.rows(z), self.options["input_scale"])
        return write((z + F.gelu(int8.product(rows, self.weight, self.scale))).to(z.dtype), out)

    def rows(self, z: Tensor) -> Tensor:
        """[B, H, W, 9 C]: what the weight as a matrix multiplies."""
        height, width = z.shape[1:3]
        rows: Tensor = F.unfold(z.permute(0, 3, 1, 2), 3, padding=1).transpose(1, 2).unflatten(1, (height, width))
        return rows
