"""The gated maps of the fusion, side by side and normalised. `api` is the contract, `reference` the definition."""

from hifuse_fast.ops.prepared.gated_concat.api import prepare_gated_concat

__all__ = ["prepare_gated_concat"]
