"""The prepared mixer in Triton."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.ops.functions.mixer import triton as mixer
from hifuse_fast.ops.prepared.base import Layout, PreparedOp

why_not = mixer.why_not


class Mixer(PreparedOp):
    """See `prepare_mixer`."""

    weight: Tensor  # in the order that its kernel reads: [C, 3, 3, C], or depthwise [3, 3, C, 1]

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        weight = tensors["weight"]
        depthwise = weight.shape[1] < len(weight)
        return PreparedOp.pack({"weight": weight.permute((2, 3, 0, 1) if depthwise else (0, 2, 3, 1))}, dtype)

    @staticmethod
    def layout(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, **options: Any) -> Layout:
        channels, depth = shapes["weight"][:2]
        return {"weight": ((3, 3, channels, 1) if depth < channels else (channels, 3, 3, depth), dtype)}

    @torch.no_grad()
    def forward(self, z: Tensor, out: Tensor | None = None) -> Tensor:
        depthwise = self.weight.shape[3] < z.shape[3]
        weight = self.weight.permute((2, 3, 0, 1) if depthwise else (0, 3, 1, 2))
        return mixer.write(z, weight, False, torch.empty_like(z) if out is None else out)[0]
