"""A linear over maps, with what comes before and after it. `api` is the contract, `reference` the definition."""

from hifuse_fast.ops.prepared.linear.api import prepare_linear

__all__ = ["prepare_linear"]
