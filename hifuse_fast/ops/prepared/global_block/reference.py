"""The global block as the calls of its parts, whatever their backend: the definition of the kernels that do it in one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hifuse_fast.ops.prepared.base import PreparedOp
from hifuse_fast.ops.prepared.parts import OfParts


class GlobalBlock(OfParts):
    """See `prepare_global_block`."""

    qkv: PreparedOp
    attention: PreparedOp
    output: PreparedOp

    def forward(self, x: Tensor, maps: Any) -> Tensor:
        if self.whole is not None and self.whole.serves(x) and self._is_as_made():
            out: Tensor = self.whole(x, out=maps.take(*x.shape))
            maps.give(x)
            return out
        qkv = self.qkv(x, out=maps.take(*x.shape[:3], 3 * x.shape[3]))
        attended = self.attention(qkv, out=maps.take(*x.shape))
        maps.give(qkv)
        out = self.output(attended, residual=x, out=maps.take(*x.shape))
        maps.give(x, attended)
        return out
