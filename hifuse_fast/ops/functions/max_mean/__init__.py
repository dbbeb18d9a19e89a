"""The largest value and the mean over the channels, or over the pixels, of a map. `reference` is the definition."""

from hifuse_fast.ops.functions.max_mean.api import max_mean

__all__ = ["max_mean"]
