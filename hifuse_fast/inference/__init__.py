"""The frozen network: weights folded and packed once, forward only."""

from hifuse_fast.inference.make import load_optimized, optimize_for_inference
from hifuse_fast.inference.network import OptimizedHiFuse

__all__ = ["OptimizedHiFuse", "load_optimized", "optimize_for_inference"]
