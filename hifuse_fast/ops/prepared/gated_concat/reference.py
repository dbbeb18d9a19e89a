"""The gated concatenation in plain PyTorch: the definition every kernel is tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.ops.prepared.base import PreparedOp, write


class GatedConcat(PreparedOp):
    """See `prepare_gated_concat`."""

    filters: Tensor
    filter_bias: Tensor
    squeeze: Tensor
    expand: Tensor
    scale: Tensor
    shift: Tensor

    @torch.no_grad()
    def forward(self, local_map: Tensor, global_map: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        gated = torch.cat([global_map * self._channel_gate(global_map), local_map * self._space_gate(local_map), x], -1)
        return write(F.layer_norm(gated, gated.shape[-1:], self.scale, self.shift, self.options["eps"]), out)

    def _space_gate(self, x: Tensor) -> Tensor:
        """[B, H, W, 1]"""
        statistics = torch.stack([x.amax(-1), x.mean(-1)], 1)
        gate = F.conv2d(statistics, self.filters[None], self.filter_bias, padding=3).sigmoid()
        return gate.permute(0, 2, 3, 1)

    def _channel_gate(self, x: Tensor) -> Tensor:
        """[B, 1, 1, C]"""
        gate = (self._se(x.amax((1, 2), keepdim=True)) + self._se(x.mean((1, 2), keepdim=True))).sigmoid()
        return gate.sigmoid() if self.options["double_sigmoid"] else gate

    def _se(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(x, self.squeeze)), self.expand)
