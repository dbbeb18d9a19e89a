"""A block of the global branch, of three prepared ops. `api` is the contract, `reference` the definition."""

from hifuse_fast.ops.prepared.global_block.api import backend_of_global_block, prepare_global_block

__all__ = ["backend_of_global_block", "prepare_global_block"]
