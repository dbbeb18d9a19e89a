"""The two linears of the inverted MLP. `api` is the contract, `reference` the definition."""

from hifuse_fast.ops.functions.mlp.api import mlp

__all__ = ["mlp"]
