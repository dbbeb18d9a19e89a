"""The gated concatenation in CUDA C++: the gates (csrc/cuda/gates.cu), what they look at, concatenation and norm."""

from __future__ import annotations

from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor

from hifuse_fast.backends.cuda.launch import DTYPES, launch
from hifuse_fast.ops.functions.concat_norm import cuda as concat_norm
from hifuse_fast.ops.functions.max_mean import cuda as max_mean
from hifuse_fast.ops.prepared.gated_concat import launched

why_not = concat_norm.why_not


def pixel_gates(x: Tensor, filters: Tensor, bias: Tensor) -> Tensor:
    """[B, H, W, 1] of a map; filters [7, 7, 2] and bias [1] are float32."""
    statistics = max_mean.forward(x, keep=False, over="channels")[0]
    gates = x.new_empty((*x.shape[:3], 1), dtype=torch.float32)
    launch("pixel_gates", (*x.shape[:3], DTYPES[x.dtype]), (), (statistics, filters, bias), (gates,))
    return gates


def channel_gates(x: Tensor, squeeze: Tensor, expand: Tensor, twice: bool) -> Tensor:
    """[B, 1, 1, C] of a map; squeeze [S, C] and expand [C, S] are float32."""
    statistics = max_mean.forward(x, keep=False, over="pixels")[0]
    gates = x.new_empty((x.shape[0], 1, 1, x.shape[3]), dtype=torch.float32)
    sizes = (x.shape[0], *expand.shape, twice, DTYPES[x.dtype])
    launch("channel_gates", sizes, (), (statistics, squeeze, expand), (gates,))
    return gates


class GatedConcat(launched.GatedConcat):
    concat_norm: ClassVar[ModuleType] = concat_norm

    def gates(self, local_map: Tensor, global_map: Tensor) -> tuple[Tensor, Tensor]:
        return (
            channel_gates(global_map, self.squeeze, self.expand, self.options["double_sigmoid"]),
            pixel_gates(local_map, self.filters, self.filter_bias),
        )
