"""The linear over maps in plain PyTorch: the definition every kernel is tested against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.ops.prepared import ANY_SIZE, PreparedOp, check_call, write


class Linear(PreparedOp):
    """See `prepare_linear`."""

    weight: Tensor
    bias: Tensor

    @torch.no_grad()
    def forward(self, *maps: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        self._check(maps)
        activation = self.options["activation"]
        x = F.linear(self._rows(maps), self.weight, self.bias)
        x = F.gelu(x) if activation == "gelu" else F.relu(x) if activation == "relu" else x
        if self.options["pool"]:
            x = F.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        if residual is not None:
            check_call("residual", residual, x.shape, self.weight)
            x = residual + x
        return write(x, out)

    def _rows(self, maps: tuple[Tensor, ...]) -> Tensor:
        """[B, H', W', K], normalised."""
        norm, eps = self.options["norm"], self.options["eps"]
        x = torch.cat(maps, -1)
        if norm == "pixel":
            x = F.layer_norm(x, x.shape[-1:], eps=eps)
        if self.options["rows"] == "patches":
            batch, height, width, channels = x.shape
            x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return F.layer_norm(x, x.shape[-1:], eps=eps) if norm == "row" else x

    def _check(self, maps: tuple[Tensor, ...]) -> None:
        patches = self.options["rows"] == "patches"
        depth = self.weight.shape[1] // 4 if patches else self.weight.shape[1]
        if not 1 <= len(maps) <= (1 if patches else 3):
            raise ValueError(f"maps must be {'1 map' if patches else '1 to 3 maps'}, got {len(maps)}")
        size: Sequence[int | None] = ANY_SIZE
        for i, x in enumerate(maps):
            check_call(f"maps[{i}]", x, (*size, depth if len(maps) == 1 else None), self.weight)
            size = x.shape[:3]
        if sum(x.shape[3] for x in maps) != depth:
            raise ValueError(f"maps must have {depth} channels together, got {[x.shape[3] for x in maps]}")
        if (patches or self.options["pool"]) and (maps[0].shape[1] % 2 or maps[0].shape[2] % 2):
            raise ValueError(f"maps[0] must have even H and W, got {list(maps[0].shape)}")
