"""The prepared mixer in CUDA C++."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.cuda import sm90
from hifuse_fast.backends.tape import kept
from hifuse_fast.ops.functions.mixer import cuda as mixer
from hifuse_fast.ops.prepared.base import Layout, PreparedOp


def why_not(*, input_scale: float | None = None, **call: Any) -> str | None:
    """The reason the CUDA kernels cannot serve this call, or None."""
    return mixer.why_not(**call) if input_scale is None else "there is no CUDA kernel in int8"


class Mixer(PreparedOp):
    """See `prepare_mixer`."""

    weight: Tensor  # in the order that its kernel reads: [C, 9, C], or depthwise [9, C]

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        weight = tensors["weight"]
        return PreparedOp.pack({"weight": mixer.taps_of(weight)}, dtype)

    @staticmethod
    def layout(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, **options: Any) -> Layout:
        channels, depth = shapes["weight"][:2]
        return {"weight": ((9, channels) if depth < channels else (channels, 9, channels), dtype)}

    @torch.no_grad()
    def forward(self, z: Tensor, out: Tensor | None = None) -> Tensor:
        out = torch.empty_like(z) if out is None else out
        rows = sm90.mixer_rows(self.weight)
        name, options = ("mixer_sm90", {"sm90_rows": rows}) if rows else ("mixer", {})
        if kept(name, z=z, weight=self.weight, out=out, depthwise=self.weight.dim() == 2, **options):
            return out
        if sm90.takes(rows, z):
            return sm90.mixer(z, self.weight, out)
        return mixer.write(z, self.weight, out)
