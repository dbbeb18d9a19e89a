"""The two linears of the inverted MLP. `api` is the contract, `reference` the definition."""

from hifuse_fast.ops.prepared.mlp.api import prepare_mlp

__all__ = ["prepare_mlp"]
