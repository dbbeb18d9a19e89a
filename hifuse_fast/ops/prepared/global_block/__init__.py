"""A block of the global branch, of three prepared ops. `api` is the contract, `reference` the definition."""

from hifuse_fast.ops.prepared.global_block.api import prepare_global_block

__all__ = ["prepare_global_block"]
