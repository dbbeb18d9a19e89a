"""The 3x3 convolution of the inverted MLP, in its residual. `api` is the contract, `reference` the definition."""

from hifuse_fast.ops.prepared.mixer.api import prepare_mixer

__all__ = ["prepare_mixer"]
