"""Modules that are made of prepared ops, and that one launch may stand for."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules import module as of_all_modules

from hifuse_fast.ops.prepared.base import PreparedOp


class OfParts(nn.Module):
    """A module of prepared ops, by their names; None for one that it goes without."""

    whole: Any  #: a prepared op that does the same in one launch, and says of which maps (`serves`); or None

    def __init__(self, **parts: PreparedOp | None) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._made_of = self._parts()
        self.whole = None

    def _is_as_made(self) -> bool:
        """Whether nobody would miss the calls of the parts."""
        hooked = of_all_modules._global_forward_hooks or of_all_modules._global_forward_pre_hooks
        return not hooked and self._parts() == self._made_of

    def _parts(self) -> list[tuple[Any, ...]]:
        """The parts with their hooks: those that users get have one from the beginning."""
        parts = [part for name, part in self.named_children() if name != "whole"]
        return [(part, "forward" in vars(part), *part._forward_hooks, *part._forward_pre_hooks) for part in parts]
