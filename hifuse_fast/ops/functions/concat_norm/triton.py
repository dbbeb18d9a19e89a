"""Gates, concatenation and layer normalisation in Triton.

A program takes whole rows, the channels of one map beside those of the next, a tile of registers for each map. The backward
walks over the rows of one image, because the gradient of a channel's gate is a sum over these; sums are kept per program and
added afterwards, so equal inputs give equal gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.backends.triton.launch import blocks, launch
from hifuse_fast.backends.triton.launch import why_not as why_not_triton

MAX_WIDTH = 4096  # of one map: the rows of three have to fit into the registers of a program
MOST_MAPS = 3
NONE, PIXEL, CHANNEL = 0, 1, 2  # kinds of gates


def why_not(*, device: torch.device, dtype: torch.dtype, width: int = 1, **_: Any) -> str | None:
    """The reason the Triton kernels cannot serve this call, or None."""
    if width > MAX_WIDTH:
        return f"its maps have at most {MAX_WIDTH} channels, got {width}"
    return why_not_triton(device, dtype)


# ---- Kernels -----------------------------------------------------------------------------------------------------------


@triton.jit
def _load(map_ptr, gate_ptr, row, image, channel, kept, C: tl.constexpr, GATE: tl.constexpr):
    """A tile of a map [rows, C] and its gate ([rows], [images, C] or 1), float32; zero where nothing is kept."""
    x = tl.load(map_ptr + row * C + channel, mask=kept, other=0.0).to(tl.float32)
    if GATE == 1:
        gate = tl.load(gate_ptr + row + 0 * channel, mask=kept, other=0.0).to(tl.float32)
    elif GATE == 2:
        gate = tl.load(gate_ptr + image * C + channel, mask=kept, other=0.0).to(tl.float32)
    else:
        gate = tl.full(x.shape, 1.0, tl.float32)
    return x, gate


@triton.jit
def _sum(r0, r1, r2, THREE: tl.constexpr):
    """The sum over the rows of two or three tiles."""
    total = r0 + r1 + r2 if THREE else r0 + r1
    return tl.sum(total, 1, keep_dims=True)


@triton.jit
def _statistics(r0, r1, r2, inside, eps, K: tl.constexpr, THREE: tl.constexpr):
    """The tiles less the mean of their rows, and 1 / sqrt(var + eps); columns that are not inside stay zero.

    Centred twice: the mean of a row far from zero is rounded, and what is left of it is the mean of the centred row.
    """
    for _ in tl.static_range(2):
        mean = _sum(r0, r1, r2, THREE) / K
        r0 = tl.where(inside, r0 - mean, 0.0)
        r1 = tl.where(inside, r1 - mean, 0.0)
        r2 = tl.where(inside, r2 - mean, 0.0)
    return r0, r1, r2, tl.rsqrt(_sum(r0 * r0, r1 * r1, r2 * r2, THREE) / K + eps)


@triton.jit
def _store_normed(out_ptr, weight_ptr, bias_ptr, normed, place, channel, inside, kept):
    weight = tl.load(weight_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + place + channel, (normed * weight + bias).to(out_ptr.dtype.element_ty), mask=kept)


@triton.jit
def _forward_kernel(
    map0_ptr, map1_ptr, map2_ptr,  # each [rows, C]
    gate0_ptr, gate1_ptr, gate2_ptr,  # each [rows] or [images, C]
    weight_ptr, bias_ptr,  # [K]
    out_ptr,  # [rows, K]
    rows, pixels, eps,
    C: tl.constexpr, K: tl.constexpr, GATE0: tl.constexpr, GATE1: tl.constexpr, GATE2: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    THREE: tl.constexpr = K == 3 * C
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    image = row // pixels
    channel = tl.arange(0, BLOCK_C)[None, :]
    inside = channel < C
    kept = (row < rows) & inside
    x0, gate0 = _load(map0_ptr, gate0_ptr, row, image, channel, kept, C, GATE0)
    x1, gate1 = _load(map1_ptr, gate1_ptr, row, image, channel, kept, C, GATE1)
    x2, gate2 = x1, gate1
    if THREE:
        x2, gate2 = _load(map2_ptr, gate2_ptr, row, image, channel, kept, C, GATE2)
    n0, n1, n2, scale = _statistics(x0 * gate0, x1 * gate1, x2 * gate2, inside, eps, K, THREE)
    _store_normed(out_ptr, weight_ptr, bias_ptr, n0 * scale, row * K, channel, inside, kept)
    _store_normed(out_ptr, weight_ptr + C, bias_ptr + C, n1 * scale, row * K + C, channel, inside, kept)
    if THREE:
        _store_normed(out_ptr, weight_ptr + 2 * C, bias_ptr + 2 * C, n2 * scale, row * K + 2 * C, channel, inside, kept)


@triton.jit
def _scaled_grad(grad_ptr, weight_ptr, place, channel, inside, kept):
    """A tile of the gradient of the output, as it is and times the weight."""
    grad = tl.load(grad_ptr + place + channel, mask=kept, other=0.0).to(tl.float32)
    return grad, grad * tl.load(weight_ptr + channel, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store_grads(
    dmap_ptr, dgate_ptr, dr, x, gate, row, rows, channel, kept, C: tl.constexpr, MAP: tl.constexpr, DGATE: tl.constexpr
):  # fmt: skip
    """Writes the gradient of a map, and that of a gate of pixels; returns what adds up to that of a gate of channels."""
    if MAP:
        tl.store(dmap_ptr + row * C + channel, (dr * gate).to(dmap_ptr.dtype.element_ty), mask=kept)
    dgate = dr * x
    if DGATE == 1:
        tl.store(dgate_ptr + row, tl.sum(dgate, 1, keep_dims=True), mask=row < rows)
    return tl.sum(dgate, 0, keep_dims=True)


@triton.jit
def _backward_kernel(
    grad_ptr,  # [rows, K]
    map0_ptr, map1_ptr, map2_ptr,  # each [rows, C]
    gate0_ptr, gate1_ptr, gate2_ptr,  # each [rows] or [images, C]
    weight_ptr,  # [K]
    dmap0_ptr, dmap1_ptr, dmap2_ptr,  # each [rows, C]
    dgate0_ptr, dgate1_ptr, dgate2_ptr,  # float32, each [rows], or [images, shares, C] to be summed over the shares
    partial_ptr,  # [2, images * shares, K] float32: of the gradients of weight and bias
    pixels, eps,
    C: tl.constexpr, K: tl.constexpr, GATE0: tl.constexpr, GATE1: tl.constexpr, GATE2: tl.constexpr,
    MAP0: tl.constexpr, MAP1: tl.constexpr, MAP2: tl.constexpr,
    DGATE0: tl.constexpr, DGATE1: tl.constexpr, DGATE2: tl.constexpr, PARAMETERS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """MAP and PARAMETERS say which gradients are needed, DGATE is the kind of a gate whose gradient is needed, or 0.

    What is computed for a gradient that is not stored, the compiler leaves out.
    """
    THREE: tl.constexpr = K == 3 * C
    share, shares = tl.program_id(0), tl.num_programs(0)
    image = tl.program_id(1).to(tl.int64)
    first, end = image * pixels, (image + 1) * pixels
    channel = tl.arange(0, BLOCK_C)[None, :]
    inside = channel < C
    dweight0 = tl.zeros([1, BLOCK_C], tl.float32)
    dweight1, dweight2, dbias0, dbias1, dbias2 = dweight0, dweight0, dweight0, dweight0, dweight0
    dgate0, dgate1, dgate2 = dweight0, dweight0, dweight0
    for start in range(first + share * BLOCK_R, end, shares * BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)[:, None]
        kept = (row < end) & inside
        x0, gate0 = _load(map0_ptr, gate0_ptr, row, image, channel, kept, C, GATE0)
        x1, gate1 = _load(map1_ptr, gate1_ptr, row, image, channel, kept, C, GATE1)
        x2, gate2 = x1, gate1
        if THREE:
            x2, gate2 = _load(map2_ptr, gate2_ptr, row, image, channel, kept, C, GATE2)
        n0, n1, n2, scale = _statistics(x0 * gate0, x1 * gate1, x2 * gate2, inside, eps, K, THREE)
        n0, n1, n2 = n0 * scale, n1 * scale, n2 * scale
        grad0, d0 = _scaled_grad(grad_ptr, weight_ptr, row * K, channel, inside, kept)
        grad1, d1 = _scaled_grad(grad_ptr, weight_ptr + C, row * K + C, channel, inside, kept)
        grad2, d2 = grad1, d1
        mean = tl.sum(d0, 1, keep_dims=True) + tl.sum(d1, 1, keep_dims=True)
        along = tl.sum(d0 * n0, 1, keep_dims=True) + tl.sum(d1 * n1, 1, keep_dims=True)
        if THREE:
            grad2, d2 = _scaled_grad(grad_ptr, weight_ptr + 2 * C, row * K + 2 * C, channel, inside, kept)
            mean += tl.sum(d2, 1, keep_dims=True)
            along += tl.sum(d2 * n2, 1, keep_dims=True)
        mean, along = mean / K, along / K
        if PARAMETERS:
            dweight0 += tl.sum(grad0 * n0, 0, keep_dims=True)
            dweight1 += tl.sum(grad1 * n1, 0, keep_dims=True)
            dbias0 += tl.sum(grad0, 0, keep_dims=True)
            dbias1 += tl.sum(grad1, 0, keep_dims=True)
            if THREE:
                dweight2 += tl.sum(grad2 * n2, 0, keep_dims=True)
                dbias2 += tl.sum(grad2, 0, keep_dims=True)
        dr0, dr1 = scale * (d0 - mean - n0 * along), scale * (d1 - mean - n1 * along)
        dgate0 += _store_grads(dmap0_ptr, dgate0_ptr, dr0, x0, gate0, row, end, channel, kept, C, MAP0, DGATE0)
        dgate1 += _store_grads(dmap1_ptr, dgate1_ptr, dr1, x1, gate1, row, end, channel, kept, C, MAP1, DGATE1)
        if THREE:
            dr2 = scale * (d2 - mean - n2 * along)
            dgate2 += _store_grads(dmap2_ptr, dgate2_ptr, dr2, x2, gate2, row, end, channel, kept, C, MAP2, DGATE2)
    program = image * shares + share
    if DGATE0 == 2:
        tl.store(dgate0_ptr + program * C + channel, dgate0, mask=inside)
    if DGATE1 == 2:
        tl.store(dgate1_ptr + program * C + channel, dgate1, mask=inside)
    if THREE and DGATE2 == 2:
        tl.store(dgate2_ptr + program * C + channel, dgate2, mask=inside)
    if PARAMETERS:
        place = partial_ptr + program * K + channel
        dbias_place = place + tl.num_programs(1).to(tl.int64) * shares * K
        tl.store(place, dweight0, mask=inside)
        tl.store(place + C, dweight1, mask=inside)
        tl.store(dbias_place, dbias0, mask=inside)
        tl.store(dbias_place + C, dbias1, mask=inside)
        if THREE:
            tl.store(place + 2 * C, dweight2, mask=inside)
            tl.store(dbias_place + 2 * C, dbias2, mask=inside)


# ---- Launchers ---------------------------------------------------------------------------------------------------------


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
    batch, height, width, channels = maps[0].shape
    tile, options = _tiles("concat_norm_forward", maps[0])
    rows = batch * height * width
    launch(
        _forward_kernel, (blocks(rows, tile["BLOCK_R"]),), *_three([x.contiguous() for x in maps]), *_pointers(gates, maps[0]),
        weight.contiguous(), bias.contiguous(), out, rows, height * width, eps,
        C=channels, K=out.shape[3], **_kinds(gates, maps[0]), **tile, **options,
    )  # fmt: skip
    return out


def backward(
    grad: Tensor, weight: Tensor, bias: Tensor, *maps_and_gates: Tensor | None, kept: Sequence[Tensor], needs: Sequence[bool],
    eps: float, dtype: torch.dtype,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of weight and bias in float32, of the maps in their dtypes, of the gates in float32."""
    maps, gates = _present(maps_and_gates)
    batch, height, width, channels = maps[0].shape
    need_parameters, need_maps = needs[:2], needs[2 : 2 + MOST_MAPS]
    tile, options = _tiles("concat_norm_backward", maps[0])
    shares = max(1, min(options.pop("programs") // max(1, batch), blocks(height * width, tile["BLOCK_R"])))
    dmaps = [
        torch.empty_like(x, memory_format=torch.contiguous_format) if need else x
        for x, need in zip(maps, need_maps, strict=False)
    ]
    kinds = _kinds(gates, maps[0])
    wanted = [kind if need else NONE for kind, need in zip(kinds.values(), needs[2 + MOST_MAPS :], strict=True)]
    shapes = {NONE: (0,), PIXEL: (batch, height, width, 1), CHANNEL: (batch, shares, 1, channels)}
    dgates = [grad.new_empty(shapes[kind], dtype=torch.float32) for kind in wanted]
    partial = grad.new_empty((2, batch * shares if any(need_parameters) else 0, weight.numel()), dtype=torch.float32)
    launch(
        _backward_kernel, (shares, batch), grad.contiguous(), *_three([x.contiguous() for x in maps]),
        *_pointers(gates, maps[0]), weight.contiguous(), *_three(dmaps), *dgates, partial,
        height * width, eps, C=channels, K=weight.numel(), **kinds,
        **{f"MAP{i}": need for i, need in enumerate(need_maps)}, **{f"DGATE{i}": kind for i, kind in enumerate(wanted)},
        PARAMETERS=any(need_parameters), **tile, **options,
    )  # fmt: skip
    parameters = partial.sum(1) if any(need_parameters) else [None, None]
    summed = [d.sum(1, keepdim=True) if kind == CHANNEL else d for d, kind in zip(dgates, wanted, strict=True)]
    found = [*parameters, *dmaps, *[None] * (MOST_MAPS - len(maps)), *summed]
    return [each if need else None for each, need in zip(found, needs, strict=True)]


def _present(maps_and_gates: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor | None]]:
    """The maps, and the gate of each: of three places for maps, and three for gates, where the last ones may be empty."""
    maps = [x for x in maps_and_gates[:MOST_MAPS] if x is not None]
    return maps, list(maps_and_gates[MOST_MAPS : MOST_MAPS + len(maps)])


def _three(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Two or three tensors as three, where the kernel looks at no third."""
    return [*tensors, *tensors[: 3 - len(tensors)]]


def _pointers(gates: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    return _three([like if gate is None else gate.contiguous() for gate in gates])


def _kinds(gates: Sequence[Tensor | None], like: Tensor) -> dict[str, int]:
    pixel = (*like.shape[:3], 1)
    kinds = [NONE if gate is None else PIXEL if tuple(gate.shape) == pixel else CHANNEL for gate in gates]
    return {f"GATE{i}": kind for i, kind in enumerate([*kinds, NONE][:3])}


def _tiles(kernel: str, like: Tensor) -> tuple[dict[str, int], dict[str, int]]:
    """The sides of a tile, and what else is configured."""
    block = triton.next_power_of_2(like.shape[3])
    config = dict(tables.lookup(kernel, tables.key(block), tables.architecture(like.device)))
    return {"BLOCK_R": max(1, config.pop("elements") // block), "BLOCK_C": block}, config
