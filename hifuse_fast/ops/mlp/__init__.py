"""The two linears of the inverted MLP. `api` is the contract, `reference` the definition."""

from hifuse_fast.ops.mlp.api import mlp, prepare_mlp

__all__ = ["mlp", "prepare_mlp"]
