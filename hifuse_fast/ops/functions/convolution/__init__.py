"""PyTorch's convolution as an operator of ours, for compiled code. `api` says where it serves, `native` is what it runs."""

from hifuse_fast.ops.functions.convolution.api import convolution, is_bound

__all__ = ["convolution", "is_bound"]
