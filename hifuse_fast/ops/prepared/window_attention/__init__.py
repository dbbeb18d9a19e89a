"""Attention in (shifted) windows, prepared. `api` is the contract, `reference` the definition."""

from hifuse_fast.ops.prepared.window_attention.api import prepare_window_attention

__all__ = ["prepare_window_attention"]
