"""The contract of the gated concatenation with layer normalisation: docstring, validation, choice of backend."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from hifuse_fast.backends.select import autocast_dtype, select
from hifuse_fast.checks import check_dense, check_eps, check_map, check_one_dtype, check_parameter
from hifuse_fast.ops.functions.concat_norm import reference
from hifuse_fast.ops.functions.fused import Fused

MOST_MAPS = 3


def concat_norm(
    *maps: Tensor,
    weight: Tensor,
    bias: Tensor,
    gates: Sequence[Tensor | None] | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> Tensor:
    r"""Multiply each of 2 or 3 maps by its gate, put them side by side, and normalise over all channels.

    .. math:: y = \mathrm{LN}([g_1 x_1, g_2 x_2, g_3 x_3])

    The kernels write neither the products nor the concatenation to memory.

    Args:
        maps: n = 2 or 3, each [B, H, W, C], floating.
        weight, bias: [nC], of the dtype of the maps, or float32.
        gates: one entry for each map: None, a factor for each pixel [B, H, W, 1], or a factor for each channel of an image
            [B, 1, 1, C]. None for no gates at all.
        eps: added to the variance.
        backend: "auto", "reference", "native", "triton" or "cuda".

    Returns:
        [B, H, W, nC], of the dtype that PyTorch promotes maps and gates to. Under autocast on CUDA it is float32.

    Raises:
        TypeError, ValueError: an argument that does not fit; the message names it, what it was and what was expected.
        BackendError: the backend asked for by name cannot serve the call.

    Source: the official HiFuse `HFF_block`, where it uses `norm1`, `norm2` and `norm3`.
    """
    gates = [None] * len(maps) if gates is None else list(gates)
    _check(maps, weight, bias, gates)
    eps = check_eps("eps", eps)
    present = [gate for gate in gates if gate is not None]
    dtype = functools.reduce(torch.promote_types, [x.dtype for x in (*maps, *present)])
    device = maps[0].device
    width = maps[0].size(3)
    key = (len(maps), width, "gated" if present else "")
    kernels = select("concat_norm", backend, key=key, device=device, dtype=dtype, width=width)
    if kernels is None:
        check_one_dtype(weight=weight, bias=bias)
        return reference.concat_norm(maps, weight, bias, gates=gates, eps=eps)
    if maps[0].is_cuda and autocast_dtype(maps[0]):
        dtype = torch.float32
    absent = (None,) * (MOST_MAPS - len(maps))
    return _FUSED(kernels, (weight, bias, *maps, *absent, *gates, *absent), {"eps": eps, "dtype": dtype})[0]


def _definition(
    weight: Tensor, bias: Tensor, *maps_and_gates: Tensor | None, eps: float, dtype: torch.dtype
) -> Tensor:  # fmt: skip
    maps = [x for x in maps_and_gates[:MOST_MAPS] if x is not None]
    gates = maps_and_gates[MOST_MAPS : MOST_MAPS + len(maps)]
    return reference.concat_norm(maps, weight, bias, gates=gates, eps=eps).to(dtype)


_FUSED = Fused(
    "concat_norm",
    "Tensor weight, Tensor bias, Tensor? map_1, Tensor? map_2, Tensor? map_3, Tensor? gate_1, Tensor? gate_2, Tensor? gate_3",
    "float eps, ScalarType dtype",
    _definition,
)


def _check(maps: Sequence[Tensor], weight: Tensor, bias: Tensor, gates: Sequence[Tensor | None]) -> None:
    if not 2 <= len(maps) <= MOST_MAPS:
        raise ValueError(f"maps must be 2 or {MOST_MAPS}, got {len(maps)}")
    if len(gates) != len(maps):
        raise ValueError(f"gates must be one for each of the {len(maps)} maps, or None, got {len(gates)}")
    for i, x in enumerate(maps):
        check_map(f"maps[{i}]", x)
        if i and x.shape != maps[0].shape:
            raise ValueError(f"maps[{i}] must be {list(maps[0].shape)} like the first, got {list(x.shape)}")
        if x.device != maps[0].device:
            raise ValueError(f"maps[{i}] must be on the device of the first, {maps[0].device}, got {x.device}")
    channels = maps[0].size(3)
    for i, gate in enumerate(gates):
        if gate is None:
            continue
        if not isinstance(gate, Tensor) or not gate.is_floating_point():
            raise TypeError(
                f"gates[{i}] must be a floating-point tensor or None, got {getattr(gate, 'dtype', type(gate).__name__)}"
            )
        check_dense(f"gates[{i}]", gate)
        batch, height, width, _ = maps[0].shape
        # Read backwards: torch.compile knows the channels, and need not ask whether H or W is 1.
        if list(gate.shape)[::-1] not in ([channels, 1, 1, batch], [1, width, height, batch]):
            expected = f"[{batch}, {height}, {width}, 1] or [{batch}, 1, 1, {channels}]"
            raise ValueError(f"gates[{i}] must be {expected}, got {list(gate.shape)}")
        if gate.device != maps[0].device:
            raise ValueError(f"gates[{i}] must be on the device of the maps, {maps[0].device}, got {gate.device}")
    check_parameter("weight", weight, [len(maps) * channels], maps[0])
    check_parameter("bias", bias, [len(maps) * channels], maps[0])
