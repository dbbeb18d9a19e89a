"""The first half of a fusion, of three or four prepared linears. `api` is the contract, `reference` the definition."""

from hifuse_fast.ops.prepared.fuse_path.api import prepare_fuse_path

__all__ = ["prepare_fuse_path"]
