"""Gates, concatenation and layer normalisation in CUDA C++: the launchers of the kernels in csrc/cuda/concat_norm.cu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.cuda.launch import DTYPES, launch, multiprocessors, scratch
from hifuse_fast.backends.cuda.launch import why_not as why_not_cuda

MAX_WIDTH = 1024  # of one map: the rows of three have to fit into the registers of a block of threads
MOST_MAPS = 3
NONE, PIXEL, CHANNEL = 0, 1, 2  # kinds of gates


def why_not(*, device: torch.device, dtype: torch.dtype, width: int = 1, **_: Any) -> str | None:
    """The reason the CUDA kernels cannot serve this call, or None."""
    if width > MAX_WIDTH:
        return f"its maps have at most {MAX_WIDTH} channels, got {width}"
    return why_not_cuda(device, dtype)


def forward(
    weight: Tensor, bias: Tensor, *maps_and_gates: Tensor | None, keep: bool, eps: float, dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """See `hifuse_fast.ops.concat_norm`; arguments are validated; the result is of `dtype`."""
    maps, gates = _present(maps_and_gates)
    batch, height, width, channels = maps[0].shape
    out = maps[0].new_empty((batch, height, width, len(maps) * channels), dtype=dtype)
    return write(maps, gates, weight, bias, eps, out), []


def write(
    maps: Sequence[Tensor], gates: Sequence[Tensor | None], weight: Tensor, bias: Tensor, eps: float, out: Tensor
) -> Tensor:
    """`forward` into `out`, contiguous, which is returned."""
    sizes = _sizes(maps, gates, weight, bias, out.dtype)
    reads = (*_three(maps), *_three(gates), weight.contiguous(), bias.contiguous())
    launch("concat_norm_forward", sizes, (eps,), reads, (out,))
    return out


def backward(
    grad: Tensor, weight: Tensor, bias: Tensor, *maps_and_gates: Tensor | None, kept: Sequence[Tensor], needs: Sequence[bool],
    eps: float, dtype: torch.dtype,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of weight and bias in float32, of the maps in their dtypes, of the gates in float32."""
    maps, gates = _present(maps_and_gates)
    batch, height, width, channels = maps[0].shape
    need_parameters, need_maps, need_gates = needs[:2], needs[2 : 2 + MOST_MAPS], needs[2 + MOST_MAPS :]
    kinds = [kind if need else NONE for kind, need in zip(_kinds(gates, maps[0]), need_gates, strict=True)]
    dmaps = [
        torch.empty_like(x, memory_format=torch.contiguous_format) if need else None
        for x, need in zip(maps, need_maps, strict=False)
    ]
    pixel_gates = [
        grad.new_empty((batch, height, width, 1), dtype=torch.float32) if kind == PIXEL else None for kind in kinds
    ]  # fmt: skip
    channel_gates = grad.new_empty((kinds.count(CHANNEL), batch, 1, 1, channels), dtype=torch.float32)
    parameters = [weight.new_empty(weight.shape, dtype=torch.float32) if any(need_parameters) else None for _ in range(2)]
    sizes = (*_sizes(maps, gates, weight, bias, grad.dtype), *(kind == CHANNEL for kind in kinds))
    reads = (*_three(maps), *_three(gates), weight.contiguous(), grad.contiguous())
    parts = scratch("concat_norm_backward_scratch", sizes, (eps,), grad)
    launch(
        "concat_norm_backward", sizes, (eps,), reads,
        (*(*dmaps, None)[:MOST_MAPS], *pixel_gates, channel_gates, *parameters, parts),
    )  # fmt: skip
    of_channels = iter(channel_gates.unbind())
    dgates = [next(of_channels) if kind == CHANNEL else pixel for kind, pixel in zip(kinds, pixel_gates, strict=True)]
    return [*parameters, *(*dmaps, None)[:MOST_MAPS], *dgates]


def _present(maps_and_gates: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor | None]]:
    """The maps, and the gate of each, contiguous: of three places for each, of which the last ones may be empty."""
    maps = [x.contiguous() for x in maps_and_gates[:MOST_MAPS] if x is not None]
    gates = maps_and_gates[MOST_MAPS : MOST_MAPS + len(maps)]
    return maps, [None if gate is None else gate.contiguous() for gate in gates]


def _three(tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    return (*tensors, None)[:MOST_MAPS]


def _kinds(gates: Sequence[Tensor | None], like: Tensor) -> list[int]:
    pixel = (*like.shape[:3], 1)
    kinds = [NONE if gate is None else PIXEL if tuple(gate.shape) == pixel else CHANNEL for gate in gates]
    return [*kinds, NONE][:MOST_MAPS]


def _sizes(
    maps: Sequence[Tensor], gates: Sequence[Tensor | None], weight: Tensor, bias: Tensor, dtype: torch.dtype
) -> tuple[int, ...]:  # fmt: skip
    batch, height, width, channels = maps[0].shape
    dtypes = [0 if each is None else DTYPES[each.dtype] for each in (*_three(maps), *_three(gates))]
    of_rows = (DTYPES[weight.dtype], DTYPES[bias.dtype], DTYPES[dtype], multiprocessors(weight.device))
    return (batch, height * width, channels, len(maps), *dtypes, *_kinds(gates, maps[0]), *of_rows)
