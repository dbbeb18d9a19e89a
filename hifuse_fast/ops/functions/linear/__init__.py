"""A linear over maps, with what comes before and after it. `api` is the contract, `reference` the definition."""

from hifuse_fast.ops.functions.linear.api import linear

__all__ = ["linear"]
