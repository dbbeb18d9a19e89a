"""The first maps of the local and the global branch, from the image. `api` is the contract, `reference` the definition."""

from hifuse_fast.ops.prepared.stem.api import prepare_stem

__all__ = ["prepare_stem"]
