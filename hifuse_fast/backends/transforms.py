"""Whether something is at work that kernels cannot see through: a transform, a mode, a function that was replaced.

The kernels have a forward and a backward, and no rule for tangents or for batches of calls. PyTorch would run them under such a
transform without a word: with tangents of zero, or on the memory behind a wrapper. Nor do kernels call the functions of PyTorch
that a user's mode changes, or that a user replaced. So whoever calls a kernel asks first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from hifuse_fast.backends.tracing import constant

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


def replaced() -> str | None:
    """What a user has put before the functions of PyTorch that definitions call, or in their place; None where nothing is."""
    for place in range(torch._C._len_torch_function_stack()):
        mode = type(torch._C._get_function_stack_at(place))
        if not _is_of_pytorch(mode):
            return f"a TorchFunctionMode ({mode.__name__})"
    return _replaced_function()


@constant  # compiled code keeps PyTorch's own functions too
def _replaced_function() -> str | None:
    # Not a loop over `_FUNCTIONS`: this is asked at each call of a kernel.
    if (
        F.linear is _LINEAR
        and F.conv2d is _CONV2D
        and F.layer_norm is _LAYER_NORM
        and F.batch_norm is _BATCH_NORM
        and F.gelu is _GELU
        and F.relu is _RELU
        and F.dropout is _DROPOUT
        and F.pad is _PAD
    ):
        return None
    name = next(name for name, function in _FUNCTIONS.items() if getattr(F, name) is not function)
    return f"another torch.nn.functional.{name} than PyTorch's"


_LINEAR, _CONV2D, _LAYER_NORM, _BATCH_NORM = F.linear, F.conv2d, F.layer_norm, F.batch_norm
_GELU, _RELU, _DROPOUT, _PAD = F.gelu, F.relu, F.dropout, F.pad
_FUNCTIONS = {
    "linear": _LINEAR, "conv2d": _CONV2D, "layer_norm": _LAYER_NORM, "batch_norm": _BATCH_NORM,
    "gelu": _GELU, "relu": _RELU, "dropout": _DROPOUT, "pad": _PAD,
}  # fmt: skip


def watched() -> bool:
    """Whether a user's TorchDispatchMode is at work. It sees operators of ours, and may change what PyTorch's give."""
    if torch.compiler.is_dynamo_compiling() or not torch._C._len_torch_dispatch_stack():  # compiled code runs below such modes
        return False
    return not all(_is_of_pytorch(type(mode)) for mode in _get_current_dispatch_mode_stack())


def foreign() -> bool:
    """Whether a user has changed what PyTorch's functions or operators give: then each is called with what the official network
    gives it, and no short cut is taken."""
    return watched() or replaced() is not None


def _is_of_pytorch(mode: type) -> bool:
    """Whether PyTorch made the class of a mode: those trace, count and place tensors, and change no number."""
    return mode.__module__.partition(".")[0] == "torch"
