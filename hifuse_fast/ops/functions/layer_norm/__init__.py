"""Layer normalisation of the pixels, or of the 2x2 patches, of a channels-last map. `reference` is the definition."""

from hifuse_fast.ops.functions.layer_norm.api import layer_norm

__all__ = ["layer_norm"]
