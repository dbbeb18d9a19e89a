"""A linear over the pixels or patches of maps, with what comes before and after it. `api` is the contract, `reference` defines it."""

from hifuse_fast.ops.linear.api import prepare_linear

__all__ = ["prepare_linear"]
