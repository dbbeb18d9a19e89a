"""The local block in CUDA C++: one kernel (csrc/cuda/local_block.cuh); or for what that does not serve, and where the table
says so, convolution and norm in one, then the product with what follows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.cuda import blocks
from hifuse_fast.backends.cuda.launch import DTYPES, begins_aligned, launch
from hifuse_fast.backends.cuda.product import product
from hifuse_fast.backends.tape import kept
from hifuse_fast.ops.functions.depthwise_norm import cuda as depthwise_norm
from hifuse_fast.ops.prepared.base import Layout, PreparedOp


def why_not(*, input_scale: float | None = None, **call: Any) -> str | None:
    """The reason the CUDA kernels cannot serve this call, or None."""
    return depthwise_norm.why_not(**call) if input_scale is None else "there is no CUDA kernel in int8"


class LocalBlock(PreparedOp):
    """See `prepare_local_block`. The norm is without scale and shift, for which a launcher is given ones and zeros."""

    filters: Tensor  # see `depthwise_norm.by_tap`
    filter_bias: Tensor
    weight: Tensor  # of one kernel see `blocks.operands`
    bias: Tensor
    ones: Tensor  # of two kernels
    zeros: Tensor

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        channels = len(tensors["bias"])
        filters = {"filters": depthwise_norm.by_tap(tensors["filters"], dtype)}
        if blocks.serve(dtype, channels):
            room = blocks.room(channels)
            vectors = PreparedOp.pack({name: tensors[name] for name in ("filter_bias", "bias")}, torch.float32)
            return filters | vectors | {"weight": blocks.operands(tensors["weight"].detach().to(dtype), room, room)}
        like = tensors["filter_bias"].float()
        constants = {"ones": torch.ones_like(like), "zeros": torch.zeros_like(like)}
        return PreparedOp.pack(tensors, dtype) | filters | constants

    @staticmethod
    def layout(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, **options: Any) -> Layout:
        channels = shapes["bias"]
        vector = (channels, torch.float32)
        taps = {"filters": ((9, depthwise_norm.filled_up(channels[0])), torch.float32)}
        if blocks.serve(dtype, *channels):
            room = blocks.room(*channels)
            return taps | {"filter_bias": vector, "bias": vector, "weight": ((room // 8, room // 32, 32, 8), dtype)}
        return PreparedOp.layout(shapes, dtype) | taps | {"ones": vector, "zeros": vector}

    _of_two: Mapping[str, Tensor] | None = None  #: the tensors of two kernels, made of those of one when they are asked for

    @torch.no_grad()
    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        eps, x = self.options["eps"], x.contiguous()
        out = torch.empty_like(x) if out is None else out
        whole = self.weight.dim() == 4
        if kept("local_block", x=x, **self.packed(), out=out, eps=eps, whole=whole):
            return out
        if whole and blocks.taken("local_block", x):
            into = out if begins_aligned(out) else torch.empty_like(out)
            reads = (x, self.filters, self.filter_bias, self.weight, self.bias)
            launch("local_block", (DTYPES[x.dtype], *x.shape), (eps,), reads, (into,))
            return out if into is out else out.copy_(into)
        two: Mapping[str, Any] = self._parts() if whole else self._buffers
        affine = two["filter_bias"], two["ones"], two["zeros"]
        normed = depthwise_norm.write(x, self.filters, *affine, eps, x.dtype, x.dtype)
        return product([normed], two["weight"], two["bias"], out, activation="gelu", residual=x)

    def _parts(self) -> Mapping[str, Tensor]:
        if self._of_two is None:
            channels, dtype = len(self.bias), self.weight.dtype
            constants = {"ones": torch.ones_like(self.bias), "zeros": torch.zeros_like(self.bias)}
            vectors = {"filter_bias": self.filter_bias.to(dtype), "bias": self.bias.to(dtype)}
            self._of_two = {"weight": blocks.plain(self.weight, channels, channels)} | vectors | constants
        return self._of_two
