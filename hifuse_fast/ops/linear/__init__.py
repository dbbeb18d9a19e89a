"""A linear over maps, with what comes before and after it. `api` is the contract, `reference` the definition."""

from hifuse_fast.ops.linear.api import linear, prepare_linear

__all__ = ["linear", "prepare_linear"]
