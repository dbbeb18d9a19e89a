"""Batch normalisation of channels-last maps with what follows it in one pass. `reference` is the definition."""

from hifuse_fast.ops.functions.batch_norm.api import batch_norm

__all__ = ["batch_norm"]
