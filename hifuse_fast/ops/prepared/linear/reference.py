"""The prepared linear in plain PyTorch: the definition every kernel is tested against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.ops.prepared import int8
from hifuse_fast.ops.prepared.base import Layout, PreparedOp, write


class Linear(PreparedOp):
    """See `prepare_linear`."""

    weight: Tensor
    scale: Tensor  # of int8
    bias: Tensor

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        if options["input_scale"] is None:
            return PreparedOp.pack(tensors, dtype)
        weight, scale = int8.quantise_weight(tensors["weight"], options["input_scale"])
        return {"weight": weight, "scale": scale, "bias": tensors["bias"].detach().to(torch.float32, copy=True)}

    @staticmethod
    def layout(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, **options: Any) -> Layout:
        if options["input_scale"] is None:
            return PreparedOp.layout(shapes, dtype)
        columns = (shapes["bias"], torch.float32)
        return {"weight": (shapes["weight"], torch.int8), "scale": columns, "bias": columns}

    @torch.no_grad()
    def forward(self, *maps: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        activation = self.options["activation"]
        x = self._product(self.rows(*maps))
        x = F.gelu(x) if activation == "gelu" else F.relu(x) if activation == "relu" else x
        if self.options["pool"]:
            x = F.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        if residual is not None:
            x = residual + x
        return write(x.to(maps[0].dtype), out)

    def _product(self, rows: Tensor) -> Tensor:
        scale = self.options["input_scale"]
        if scale is None:
            return F.linear(rows, self.weight, self.bias)
        return int8.product(int8.quantise(rows, scale), self.weight, self.scale) + self.bias

    def rows(self, *maps: Tensor) -> Tensor:
        """[B, H', W', K], normalised: what the weight multiplies."""
        norm, eps = self.options["norm"], self.options["eps"]
        x = torch.cat(maps, -1)
        if self.options["input_scale"] is not None:
            x = x.float()  # the norm is not rounded before it is quantised
        if norm == "pixel":
            x = F.layer_norm(x, x.shape[-1:], eps=eps)
        if self.options["rows"] == "patches":
            batch, height, width, channels = x.shape
            x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return F.layer_norm(x, x.shape[-1:], eps=eps) if norm == "row" else x
