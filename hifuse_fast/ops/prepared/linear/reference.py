"""The prepared linear in plain PyTorch: the definition every kernel is tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.ops.prepared.base import PreparedOp, write


class Linear(PreparedOp):
    """See `prepare_linear`."""

    weight: Tensor
    bias: Tensor

    @torch.no_grad()
    def forward(self, *maps: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        activation = self.options["activation"]
        x = F.linear(self._rows(maps), self.weight, self.bias)
        x = F.gelu(x) if activation == "gelu" else F.relu(x) if activation == "relu" else x
        if self.options["pool"]:
            x = F.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        if residual is not None:
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
