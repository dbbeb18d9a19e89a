"""The first half of a fusion, of three or four prepared linears. `api` is the contract, `reference` the definition."""

from hifuse_fast.ops.prepared.fuse_path.api import backend_of_fuse_path, prepare_fuse_path

__all__ = ["backend_of_fuse_path", "prepare_fuse_path"]
