"""Prepared ops that do not need each other's results, called together: one launch where their backend has one for them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules import module as of_all_modules

Call = tuple[nn.Module, Tensor, Tensor]  # an op, its map, and where its result goes


def together(*calls: Call) -> list[Tensor]:
    """The results of `op(x, out=out)` for each call.

    A class of ops that has a launch for several of them has a static method `together`, which takes all calls. It serves them
    if all are of that class, and nobody would miss the calls of the single ops: none has a hook or a forward of its own.
    """
    kinds = {type(op) for op, *_ in calls}
    joint = getattr(kinds.pop(), "together", None)
    if joint is None or kinds or any(_is_watched(op) for op, *_ in calls):
        return [op(x, out=out) for op, x, out in calls]
    results: list[Tensor] = joint(calls)
    return results


def _is_watched(op: nn.Module) -> bool:
    hooks = op._forward_hooks, op._forward_pre_hooks, of_all_modules._global_forward_hooks
    return any(hooks) or bool(of_all_modules._global_forward_pre_hooks) or "forward" in vars(op)
