"""Shifted-window attention over an un-partitioned map. `api` is the contract, `reference` the definition."""

from hifuse_fast.ops.functions.window_attention.api import window_attention

__all__ = ["window_attention"]
