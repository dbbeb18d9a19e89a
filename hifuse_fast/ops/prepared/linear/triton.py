"""The prepared linear in Triton."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.ops.functions.batch_norm import triton as batch_norm
from hifuse_fast.ops.functions.concat_norm import triton as concat_norm
from hifuse_fast.ops.functions.layer_norm import triton as layer_norm
from hifuse_fast.ops.functions.linear import triton as linear
from hifuse_fast.ops.prepared.base import Layout, PreparedOp


def why_not(*, input_scale: float | None = None, **call: Any) -> str | None:
    return linear.why_not(**call) if input_scale is None else "there is no Triton kernel in int8"


class Linear(PreparedOp):
    """See `prepare_linear`. Norms are without scale and shift, for which the launchers are given ones and zeros."""

    weight: Tensor
    bias: Tensor
    ones: Tensor
    zeros: Tensor

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        like, size = tensors["weight"], max(tensors["weight"].shape)
        constants = {"ones": like.new_ones(size, dtype=torch.float32), "zeros": like.new_zeros(size, dtype=torch.float32)}
        return PreparedOp.pack(tensors, dtype) | constants

    @staticmethod
    def layout(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, **options: Any) -> Layout:
        constants = ((max(shapes["weight"]),), torch.float32)
        return PreparedOp.layout(shapes, dtype) | {"ones": constants, "zeros": constants}

    @torch.no_grad()
    def forward(self, *maps: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        o, x, norm = self.options, maps[0], self.options["norm"]
        eps, rows, activation = o["eps"], o["rows"], o["activation"]
        if rows == "patches" and norm != "row":
            x, rows, norm = self._gather(x, norm, eps), "pixels", None
        elif len(maps) > 1:
            x, norm = self._concatenate(maps, norm, eps)
        one, zero = (None, None) if norm is None else self._affine(self.weight.shape[1])
        if activation != "relu" and not o["pool"]:
            written, _ = linear.write(
                x, self.weight, self.bias, one, zero, residual, eps, rows, activation, False, out, by_size=True
            )  # fmt: skip
            return written
        columns, half = len(self.weight), 2 if rows == "patches" else 1
        product = torch.mm(linear.normalised_rows(x, one, zero, eps, rows, x.dtype), self.weight.t()).view(
            x.shape[0], x.shape[1] // half, x.shape[2] // half, columns
        )
        ones, zeros = self._affine(columns)
        if out is None:
            batch, height, width, _ = product.shape
            out = x.new_empty((batch, height // 2, width // 2, columns) if o["pool"] else product.shape)
        return batch_norm.write(product, ones, self.bias, residual, zeros, ones, 0.0, activation, o["pool"], out)

    def _affine(self, width: int) -> tuple[Tensor, Tensor]:
        """Scale and shift of a norm, or variance and mean."""
        return self.ones[:width], self.zeros[:width]

    def _gather(self, x: Tensor, norm: str | None, eps: float) -> Tensor:
        """[B, H / 2, W / 2, 4C], the norm of the pixels taken on the way: the columns of a pair of rows, and their pixels."""
        batch, height, width, channels = x.shape
        pairs = x.view(batch * height // 2, 2, width, channels).transpose(1, 2)
        if norm == "pixel":
            pairs = layer_norm.write(pairs, *self._affine(channels), eps, "pixels", x.dtype)
        return pairs.reshape(batch, height // 2, width // 2, 4 * channels)

    def _concatenate(self, maps: tuple[Tensor, ...], norm: str | None, eps: float) -> tuple[Tensor, str | None]:
        """The maps side by side, normalised on the way where a kernel does; and the norm that is left to do."""
        if norm is None or len({x.shape[3] for x in maps}) > 1 or maps[0].shape[3] > concat_norm.MAX_WIDTH:
            return torch.cat(maps, -1), norm
        out = maps[0].new_empty((*maps[0].shape[:3], self.weight.shape[1]))
        return concat_norm.write(maps, [None] * len(maps), *self._affine(self.weight.shape[1]), eps, out), None
