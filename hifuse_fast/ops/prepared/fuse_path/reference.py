"""The fuse path as the calls of its parts, whatever their backend: the definition of the kernel that does it in one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hifuse_fast.ops.prepared.base import PreparedOp
from hifuse_fast.ops.prepared.parts import OfParts
from hifuse_fast.ops.prepared.together import together


class FusePath(OfParts):
    """See `prepare_fuse_path`."""

    local_linear: PreparedOp
    global_linear: PreparedOp
    up: PreparedOp | None
    fuse: PreparedOp

    def forward(
        self, local_map: Tensor, global_map: Tensor, fused_map: Tensor | None, maps: Any
    ) -> tuple[Tensor, Tensor | None]:
        shape = local_map.shape
        if self.whole is not None and self.whole.serves(local_map) and self._is_as_made():
            return self.whole(local_map, global_map, out=maps.take(*shape)), None
        calls = [(self.local_linear, local_map, maps.take(*shape)), (self.global_linear, global_map, maps.take(*shape))]
        if self.up is not None and fused_map is not None:
            calls.append((self.up, fused_map, maps.take(*shape)))
        w_l, w_g, *w_f = together(*calls)
        if fused_map is not None:
            maps.give(fused_map)
        x = self.fuse(*w_f, w_l, w_g, out=maps.take(*shape))
        maps.give(w_l, w_g)
        return x, w_f[0] if w_f else None
