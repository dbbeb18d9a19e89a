"""The global block as the calls of its parts, whatever their backend: the definition of the kernels that do it in one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as of_all_modules

from hifuse_fast.ops.prepared.base import PreparedOp


class GlobalBlock(nn.Module):
    """See `prepare_global_block`."""

    def __init__(self, qkv: PreparedOp, attention: PreparedOp, output: PreparedOp) -> None:
        super().__init__()
        self.qkv, self.attention, self.output = qkv, attention, output
        self.whole: PreparedOp | None = None  #: what does the same in one launch
        self._made_of = self._parts()

    def forward(self, x: Tensor, maps: Any) -> Tensor:
        if self.whole is not None and self._is_as_made():
            out: Tensor = self.whole(x, out=maps.take(*x.shape))
            maps.give(x)
            return out
        qkv = self.qkv(x, out=maps.take(*x.shape[:3], 3 * x.shape[3]))
        attended = self.attention(qkv, out=maps.take(*x.shape))
        maps.give(qkv)
        out = self.output(attended, residual=x, out=maps.take(*x.shape))
        maps.give(x, attended)
        return out

    def _is_as_made(self) -> bool:
        """Whether nobody would miss the calls of the parts."""
        hooked = of_all_modules._global_forward_hooks or of_all_modules._global_forward_pre_hooks
        return not hooked and self._parts() == self._made_of

    def _parts(self) -> list[tuple[Any, ...]]:
        """The parts with their hooks: those that users get have one from the beginning."""
        parts = self.qkv, self.attention, self.output
        return [(part, "forward" in vars(part), *part._forward_hooks, *part._forward_pre_hooks) for part in parts]
