"""The fused operations: one folder per op, channels last, each with a reference that defines it."""

from hifuse_fast.ops.window_attention import window_attention

__all__ = ["window_attention"]
