"""The local block in CUDA C++: convolution and norm in one kernel, then the product with what follows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.cuda.product import product
from hifuse_fast.ops.functions.depthwise_norm import cuda as depthwise_norm
from hifuse_fast.ops.prepared.base import Layout, PreparedOp


def why_not(*, input_scale: float | None = None, **call: Any) -> str | None:
    """The reason the CUDA kernels cannot serve this call, or None."""
    return depthwise_norm.why_not(**call) if input_scale is None else "there is no CUDA kernel in int8"


class LocalBlock(PreparedOp):
    """See `prepare_local_block`. The norm is without scale and shift, for which the launcher is given ones and zeros."""

    filters: Tensor  # see `depthwise_norm.by_tap`
    filter_bias: Tensor
    weight: Tensor
    bias: Tensor
    ones: Tensor
    zeros: Tensor

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        like = tensors["filter_bias"].float()
        constants = {"ones": torch.ones_like(like), "zeros": torch.zeros_like(like)}
        return PreparedOp.pack(tensors, dtype) | {"filters": depthwise_norm.by_tap(tensors["filters"], dtype), **constants}

    @staticmethod
    def layout(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, **options: Any) -> Layout:
        constants = (shapes["filter_bias"], torch.float32)
        taps = ((9, depthwise_norm.filled_up(shapes["filters"][0])), torch.float32)
        return PreparedOp.layout(shapes, dtype) | {"filters": taps, "ones": constants, "zeros": constants}

    @torch.no_grad()
    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        eps = self.options["eps"]
        normed = depthwise_norm.write(x, self.filters, self.filter_bias, self.ones, self.zeros, eps, x.dtype, x.dtype)
        out = torch.empty_like(normed) if out is None else out
        return product([normed], self.weight, self.bias, out, activation="gelu", residual=x.contiguous())
