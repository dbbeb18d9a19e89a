"""The contract of the stem: docstring, validation, choice of backend."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.select import prepared_class
from hifuse_fast.checks import check_dense, check_dtype, check_eps, check_weights
from hifuse_fast.ops.prepared.base import DTYPES, PreparedOp, check_calls, check_operand


def prepare_stem(
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    *,
    eps: tuple[float, float],
    dtype: torch.dtype,
    backend: str = "auto",
) -> PreparedOp:
    r"""The first maps of the local and the global branch, from one pass over the image.

    .. math:: y_i = \mathrm{norm}_i(\mathrm{conv}_{4 \times 4 / 4}(images; W_i) + b_i) \cdot scale_i + shift_i, \quad i = 0, 1

    with norm_i(x) = (x - mean) / sqrt(var + eps_i) over the channels. The op is called as `op(images, out=None)`, with
    images [B, in_chans, 4H, 4W], and returns the pair (local_map, global_map) = (y_0, y_1), each [B, H, W, C].

    Args:
        weight: [2, C, in_chans, 4, 4], first of the local branch, then of the global branch.
        bias, scale, shift: [2, C].
        eps: of the two norms.
        dtype: of images and maps, float32 or bfloat16; float16 on GPUs and in the reference, float64 in the reference alone.
        backend: "auto", "reference", "native", "triton" or "cuda".

    Returns:
        The op. Images are of `dtype` and of any strides. `out` is a pair of contiguous maps to write to, which share no memory
        with each other, the images or the packed tensors; where it is None, the op makes fresh maps. No autograd.

    Raises:
        TypeError, ValueError: an argument that does not fit, here or at a call; the message names it.
        BackendError: the backend asked for by name cannot serve this.
        RuntimeError: at a call, under a function transform, or for a tensor that requires a gradient unless under no_grad.

    Source: the official HiFuse `PatchEmbed` and the first of its `downsample_layers`.
    """
    check_weights(weight=(weight, "2 C I 4 4"), bias=(bias, "2 C"), scale=(scale, "2 C"), shift=(shift, "2 C"))
    check_dtype("dtype", dtype, DTYPES)
    if not isinstance(eps, (tuple, list)) or len(eps) != 2:
        raise ValueError(f"eps must be a pair of numbers, got {eps!r}")
    options = {"eps": (check_eps("eps[0]", eps[0]), check_eps("eps[1]", eps[1]))}
    tensors = {"weight": weight, "bias": bias, "scale": scale, "shift": shift}
    _, channels, in_chans, *_ = weight.shape
    key = (in_chans, channels)
    cls = prepared_class("prepare_stem", backend, key=key, device=weight.device, dtype=dtype, width=channels, **options)
    op: PreparedOp = cls.prepare(tensors, dtype, **options)
    like = weight.new_empty(0, dtype=dtype)
    return check_calls(op, partial(_check_call, like=like, channels=channels, in_chans=in_chans), "layer_norm")


def _check_call(images: Any, out: Any = None, *, like: Tensor, channels: int, in_chans: int) -> None:
    """`like`: of the op's dtype and device."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
    check_dense("images", images)
    shape = list(images.shape)
    if len(shape) != 4 or shape[1] != in_chans or 0 in shape[2:] or shape[2] % 4 or shape[3] % 4:
        raise ValueError(f"images must be [B, {in_chans}, 4H, 4W] with H and W at least 1, got {shape}")
    if images.dtype != like.dtype:
        raise TypeError(f"images must be {like.dtype} as the op was prepared for, got {images.dtype}")
    if images.device != like.device:
        raise ValueError(f"images must be on the op's device, {like.device}, got {images.device}")
    if out is not None:
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise TypeError(f"out must be a pair of maps, got {type(out).__name__}")
        for i in (0, 1):
            check_operand(f"out[{i}]", out[i], (shape[0], shape[2] // 4, shape[3] // 4, channels), like)
