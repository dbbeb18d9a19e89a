"""Depthwise 3x3 convolution, then layer normalisation, of a channels-last map. `reference` is the definition."""

from hifuse_fast.ops.functions.depthwise_norm.api import depthwise_norm

__all__ = ["depthwise_norm"]
