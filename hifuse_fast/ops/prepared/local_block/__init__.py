"""A block of the local branch. `api` is the contract, `reference` the definition."""

from hifuse_fast.ops.prepared.local_block.api import prepare_local_block

__all__ = ["prepare_local_block"]
