"""The local block in Triton: convolution and norm in one kernel, then the linear with what follows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.ops.functions.depthwise_norm import triton as depthwise_norm
from hifuse_fast.ops.functions.linear import triton as linear
from hifuse_fast.ops.prepared.base import Layout, PreparedOp


def why_not(*, input_scale: float | None = None, **call: Any) -> str | None:
    """The reason the Triton kernels cannot serve this call, or None."""
    return depthwise_norm.why_not(**call) if input_scale is None else "there is no Triton kernel in int8"


class LocalBlock(PreparedOp):
    """See `prepare_local_block`. The norm is without scale and shift, for which the launcher is given ones and zeros."""

    filters: Tensor  # [9, C]: the channels of a tap side by side
    filter_bias: Tensor
    weight: Tensor
    bias: Tensor
    ones: Tensor
    zeros: Tensor

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        by_tap = {"filters": tensors["filters"].flatten(1).t()}
        like = tensors["filter_bias"].float()
        constants = {"ones": torch.ones_like(like), "zeros": torch.zeros_like(like)}
        return PreparedOp.pack({**tensors, **by_tap}, dtype) | constants

    @staticmethod
    def layout(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, **options: Any) -> Layout:
        constants = (shapes["filter_bias"], torch.float32)
        by_tap = {"filters": (9, *shapes["filter_bias"])}
        return PreparedOp.layout({**shapes, **by_tap}, dtype) | {"ones": constants, "zeros": constants}

    @torch.no_grad()
    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        eps = self.options["eps"]
        normed = depthwise_norm.write(
            x, self.filters.t(), self.filter_bias, self.ones, self.zeros, eps, x.dtype, x.dtype
        )  # fmt: skip
        written, _ = linear.write(
            normed, self.weight, self.bias, None, None, x, eps, "pixels", "gelu", False, out, by_size=True
        )  # fmt: skip
        return written
