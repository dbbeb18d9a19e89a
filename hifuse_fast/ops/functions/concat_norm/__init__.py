"""Layer normalisation over the channels of several maps side by side, each with its gate. `reference` is the definition."""

from hifuse_fast.ops.functions.concat_norm.api import concat_norm

__all__ = ["concat_norm"]
