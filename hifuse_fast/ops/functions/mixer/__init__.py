"""The 3x3 convolution of the inverted MLP, in its residual. `api` is the contract, `reference` the definition."""

from hifuse_fast.ops.functions.mixer.api import mixer

__all__ = ["mixer"]
