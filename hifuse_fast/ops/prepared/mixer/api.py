"""The contract of the prepared mixer: docstring, validation, choice of backend."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.select import prepared_class
from hifuse_fast.checks import check_choice, check_dtype, check_weights
from hifuse_fast.ops.prepared import int8
from hifuse_fast.ops.prepared.base import ANY_SIZE, DTYPES, PreparedOp, check_calls, check_operand, check_results

ALGORITHMS = ("auto", "direct", "winograd2", "winograd4")


def prepare_mixer(
    weight: Tensor,
    *,
    algorithm: str = "auto",
    input_scale: float | None = None,
    dtype: torch.dtype,
    backend: str = "auto",
) -> PreparedOp:
    r"""The 3x3 convolution of the inverted MLP, with its GELU and its residual, packed once, in one pass.

    .. math:: u = z + \mathrm{GELU}(\mathrm{conv}_{3 \times 3}(z))

    with zero padding, no bias and the exact GELU. The op is called as `op(z, out=None)`: [B, H, W, C] -> [B, H, W, C].

    Only kernels of a dense convolution have several algorithms: those for CPUs all of them, Triton's "direct" and, but for
    float16, "winograd2". CUDA's and the reference have one, and so has a depthwise weight. On Triton "auto" is "direct" but for
    many pixels of channels for which the table of the architecture says otherwise; such an op keeps the filters twice.
    On CPUs with AMX "auto" is "direct" in bfloat16.
    Winograd's F(2x2, 3x3) takes 4/9 of the multiplications of the direct algorithm. F(4x4, 3x3) takes 1/4 of them in float32,
    and 1/3 in bfloat16, where complex points keep the digits. Their rounding errors are larger, within the bounds in
    `bounds.py`.

    Args:
        weight: [C, C, 3, 3], or [C, 1, 3, 3] for the depthwise convolution.
        algorithm: "auto" (the fastest within the bounds for this dtype), "direct", "winograd2" or "winograd4". An algorithm
            asked for by name is that of every call.
        input_scale: where it is given, the convolution is of 8-bit integers, with exact sums, as in `prepare_linear`: z is
            divided by it, rounded, and kept within -127 to 127; the filters of each output channel have a scale of their own. A
            pixel with a value that is not finite gives NaN to itself and its neighbours. GELU is within 2e-5 then. For a dense
            weight, on the CPU, for float32 and bfloat16. "winograd2" gives the sums of "direct" to the last bit then, of up to
            3698 channels. "auto" is "direct" on CPUs with AVX512-BF16 or AMX, and for more channels; else "winograd2".
        dtype: of the maps, float32 or bfloat16; float16 on GPUs and in the reference, float64 in the reference alone.
        backend: "auto", "reference", "native", "triton" or "cuda".

    Returns:
        The op. `z` and `out` are contiguous, of `dtype`. A call writes to `out`, which shares no memory with `z` or the packed
        weight, and returns it; where `out` is None, it makes a fresh map. No autograd.

    Raises:
        TypeError, ValueError: an argument that does not fit, here or at a call; the message names it.
        BackendError: the backend asked for by name cannot serve this.
        RuntimeError: at a call, under a function transform, or for a tensor that requires a gradient unless under no_grad.

    Source: the official HiFuse `IRMLP`; Lavin and Gray 2016 (Winograd's algorithm for convolutions); Meng and Brothers 2019
    (complex points).
    """
    depthwise = isinstance(weight, Tensor) and weight.dim() == 4 and weight.shape[1] == 1
    check_weights(weight=(weight, "C 1 3 3" if depthwise else "C C 3 3"))
    check_dtype("dtype", dtype, DTYPES)
    options: dict[str, Any] = {"algorithm": check_choice("algorithm", algorithm, ALGORITHMS)}
    options |= int8.check_scales(dtype, (9 * weight.shape[1],), input_scale=input_scale)
    if weight.shape[1] < len(weight) and input_scale is not None:
        raise ValueError(f"weight must be [C, C, 3, 3] with input_scale, got {list(weight.shape)}")
    if input_scale is not None:
        check_choice("algorithm with input_scale", algorithm, ALGORITHMS[:3])
        if algorithm == "winograd2" and len(weight) > int8.MOST_CHANNELS:
            most = int8.MOST_CHANNELS
            raise ValueError(f"algorithm winograd2 with input_scale is of {most} channels or fewer, got {len(weight)}")
    key = (len(weight), "depthwise" if depthwise else "dense")
    cls = prepared_class("prepare_mixer", backend, key=key, device=weight.device, dtype=dtype, **options)
    op: PreparedOp = cls.prepare({"weight": weight}, dtype, **options)
    return check_calls(op, partial(_check_call, like=weight.new_empty(0, dtype=dtype), channels=len(weight)), "mixer")


def _check_call(z: Any, out: Any = None, *, like: Tensor, channels: int) -> None:
    """`like`: of the op's dtype and device."""
    check_operand("z", z, (*ANY_SIZE, channels), like)
    check_results(z.shape, like, out=out)
