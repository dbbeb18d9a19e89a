"""Whether a function transform of PyTorch is at work, which kernels cannot see through.

The kernels have a forward and a backward, and no rule for tangents or for batches of calls. PyTorch would run them under such a
transform without a word: with tangents of zero, or on the memory behind a wrapper. So whoever calls a kernel asks first.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

REMEDY = 'the reference serves it: take backend="reference" or "auto", or leave the transform'


def active() -> str | None:
    """The transform that is at work in this thread, by its name in PyTorch, or None."""
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func (grad, vmap, jvp, ...)"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation (torch.autograd.forward_ad)"
    return None


def batched(tensor: torch.Tensor) -> bool:
    """Whether a gradient stands for a batch of gradients: `autograd.grad(is_grads_batched=True)` has a vmap of its own."""
    return torch._C._functorch.is_legacy_batchedtensor(tensor)
