"""The contract of the mixer: docstring, validation, choice of backend, autograd; the function over maps, the prepared op."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hifuse_fast import backends
from hifuse_fast.checks import check_choice, check_dtype, check_map, check_parameter, check_weights
from hifuse_fast.ops.mixer import reference
from hifuse_fast.ops.prepared import ANY_SIZE, DTYPES, PreparedOp, check_calls, check_operand, check_results

ALGORITHMS = ("auto", "direct", "winograd2", "winograd4")
MIXED = (torch.float32, torch.bfloat16, torch.float16)  # what autocast casts; float64 it leaves as it is


def mixer(z: Tensor, weight: Tensor, *, backend: str = "auto") -> Tensor:
    r"""The 3x3 convolution of the inverted MLP in its residual.

    .. math:: u = z + \mathrm{GELU}(\mathrm{conv}_{3 \times 3}(z))

    with zero padding, no bias and the exact GELU. A GPU wants a dense weight in channels-last memory, which
    `model.to(memory_format=torch.channels_last)` gives; another one is copied at every call.

    Equal inputs give equal bits, but for the gradients of a dense convolution on a GPU, which are cuDNN's: it may choose a way
    that adds in any order unless `torch.backends.cudnn.deterministic` (or `torch.use_deterministic_algorithms`) is set.

    Args:
        z: [B, H, W, C], any strides; floating.
        weight: [C, C, 3, 3], or [C, 1, 3, 3] for the depthwise convolution, any strides; of the dtype of `z`. Under autocast
            each of the two may be float32, bfloat16 or float16.
        backend: "auto", "reference", "native" or "triton".

    Returns:
        [B, H, W, C], of the dtype of the convolution (that of `weight`, or autocast's), promoted with that of `z`.

    Raises:
        TypeError, ValueError: an argument that does not fit; the message names it, what it was and what was expected.
        BackendError: the backend asked for by name cannot serve the call.

    Source: the official HiFuse `IRMLP`: its `conv1` with the activation and the sum after it.
    """
    check_map("z", z)
    autocast = None if z.dtype == torch.float64 else backends.autocast_dtype(z.device)
    channels = z.shape[3]
    depthwise = isinstance(weight, Tensor) and list(weight.shape) == [channels, 1, 3, 3]
    if isinstance(weight, Tensor) and not depthwise and list(weight.shape) != [channels, channels, 3, 3]:
        raise ValueError(f"weight must be {[channels, channels, 3, 3]} or {[channels, 1, 3, 3]}, got {list(weight.shape)}")
    check_parameter("weight", weight, getattr(weight, "shape", ()), z, (z.dtype,) if autocast is None else MIXED)

    dtype = autocast or z.dtype
    key = (channels, "depthwise" if depthwise else "dense")
    kernels = backends.select("mixer", backend, key=key, device=z.device, dtype=dtype)
    if kernels is None:
        return reference.mixer(z, weight)
    weight = weight.to(dtype)
    if torch.is_grad_enabled() and (z.requires_grad or weight.requires_grad):
        out: Tensor = _Mixer.apply(z, weight, kernels)
        return out
    forwarded: Tensor = kernels.forward(z, weight, False)[0]
    return forwarded


class _Mixer(torch.autograd.Function):
    """Saves the inputs and what goes into GELU."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, kernels: ModuleType) -> Tensor:
        out: Tensor
        out, c = kernels.forward(z, weight, True)
        ctx.save_for_backward(z, weight, c)
        ctx.kernels = kernels
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need_z, need_weight, _ = ctx.needs_input_grad
        dz, dweight = ctx.kernels.backward(grad, *ctx.saved_tensors, need_z, need_weight)
        return dz if need_z else None, dweight if need_weight else None, None


def prepare_mixer(weight: Tensor, *, algorithm: str = "auto", dtype: torch.dtype, backend: str = "auto") -> PreparedOp:
    r"""The 3x3 convolution of the inverted MLP in its residual, packed once, in one pass.

    .. math:: u = z + \mathrm{GELU}(\mathrm{conv}_{3 \times 3}(z))

    with zero padding, no bias and the exact GELU. The result is called as `op(z, out=None)`: [B, H, W, C] -> [B, H, W, C].

    The algorithms are those of a dense convolution in kernels; the reference and a depthwise weight have one each. Winograd's
    F(2x2, 3x3) takes 4/9 of the multiplications of the direct one. F(4x4, 3x3) takes 1/4, or in bfloat16, whose digits complex
    points keep, 1/3. Their rounding errors are larger, and `testing.MIXER_BOUNDS` says by how much.

    Args:
        weight: [C, C, 3, 3], or [C, 1, 3, 3] for the depthwise convolution.
        algorithm: "auto" (the fastest within the bounds for this dtype), "direct", "winograd2" or "winograd4".
        dtype: of the maps, float32 or bfloat16; float16 in Triton and the reference, float64 in the reference alone.
        backend: "auto", "reference", "native" or "triton".

    Returns:
        The op. `z` and `out` are contiguous, of `dtype`, and do not overlap. It writes to `out` and returns it, a fresh map
        where that is None. No autograd.

    Raises:
        TypeError, ValueError: an argument that does not fit, here or at a call; the message names it.
        BackendError: the backend asked for by name cannot serve this.

    Source: the official HiFuse `IRMLP`; Lavin and Gray 2016 (Winograd's algorithm for convolutions); Meng and Brothers 2019
    (complex points).
    """
    depthwise = isinstance(weight, Tensor) and weight.dim() == 4 and weight.shape[1] == 1
    check_weights(weight=(weight, "C 1 3 3" if depthwise else "C C 3 3"))
    check_dtype("dtype", dtype, DTYPES)
    options = {"algorithm": check_choice("algorithm", algorithm, ALGORITHMS)}
    cls = backends.prepared_class("mixer", backend, device=weight.device, dtype=dtype, **options)
    op: PreparedOp = cls(cls.pack({"weight": weight}, dtype, **options), **options)
    return check_calls(op, partial(_check_call, like=weight.new_empty(0, dtype=dtype), channels=len(weight)))


def _check_call(z: Any, out: Any = None, *, like: Tensor, channels: int) -> None:
    """`like`: of the op's dtype and device."""
    check_operand("z", z, (*ANY_SIZE, channels), like)
    check_results(z.shape, like, out=out)
    if out is not None and out.data_ptr() == z.data_ptr() and z.numel():
        raise ValueError("out must not be z, whose neighbours are still read")
