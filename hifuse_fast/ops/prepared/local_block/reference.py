"""The local block in plain PyTorch: the definition every kernel is tested against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.ops.prepared import int8
from hifuse_fast.ops.prepared.base import Layout, PreparedOp, write


class LocalBlock(PreparedOp):
    """See `prepare_local_block`."""

    filters: Tensor
    filter_bias: Tensor
    weight: Tensor
    scale: Tensor  # of int8
    bias: Tensor

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        if options["input_scale"] is None:
            return PreparedOp.pack(tensors, dtype)
        weight, scale = int8.quantise_weight(tensors["weight"], options["input_scale"])
        return {**PreparedOp.pack(tensors, torch.float32), "weight": weight, "scale": scale}

    @staticmethod
    def layout(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, **options: Any) -> Layout:
        if options["input_scale"] is None:
            return PreparedOp.layout(shapes, dtype)
        scale = (shapes["bias"], torch.float32)
        return {**PreparedOp.layout(shapes, torch.float32), "weight": (shapes["weight"], torch.int8), "scale": scale}

    @torch.no_grad()
    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return write((x + F.gelu(self._product(self.rows(x)))).to(x.dtype), out)

    def _product(self, rows: Tensor) -> Tensor:
        scale = self.options["input_scale"]
        if scale is None:
            return F.linear(rows, self.weight, self.bias)
        return int8.product(int8.quantise(rows, scale), self.weight, self.scale) + self.bias

    def rows(self, x: Tensor) -> Tensor:
        """[B, H, W, C], convolved and normalised: what the weight multiplies."""
        if self.options["input_scale"] is not None:
            x = x.float()  # nothing is rounded before it is quantised
        channels = self.weight.shape[0]
        mixed = F.conv2d(x.permute(0, 3, 1, 2), self.filters[:, None], self.filter_bias, padding=1, groups=channels)
        return F.layer_norm(mixed.permute(0, 2, 3, 1), (channels,), eps=self.options["eps"])
