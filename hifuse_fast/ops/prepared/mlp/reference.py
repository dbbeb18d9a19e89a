"""The prepared MLP in plain PyTorch: the definition every kernel is tested against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.ops.prepared import int8
from hifuse_fast.ops.prepared.base import Layout, PreparedOp, write


class Mlp(PreparedOp):
    """See `prepare_mlp`."""

    expand: Tensor
    expand_scale: Tensor  # of int8
    expand_bias: Tensor
    project: Tensor
    project_scale: Tensor  # of int8
    project_bias: Tensor

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        if options["input_scale"] is None:
            return PreparedOp.pack(tensors, dtype)
        packed = {}
        for name, scale in (("expand", options["input_scale"]), ("project", options["hidden_scale"])):
            packed[name], packed[f"{name}_scale"] = int8.quantise_weight(tensors[name], scale)
            packed[f"{name}_bias"] = tensors[f"{name}_bias"].detach().to(torch.float32, copy=True)
        return packed

    @staticmethod
    def layout(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, **options: Any) -> Layout:
        if options["input_scale"] is None:
            return PreparedOp.layout(shapes, dtype)
        layout: Layout = {}
        for name in ("expand", "project"):
            layout[name] = (shapes[name], torch.int8)
            layout[f"{name}_scale"] = layout[f"{name}_bias"] = (shapes[f"{name}_bias"], torch.float32)
        return layout

    @torch.no_grad()
    def forward(self, u: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        x = self._product("project", "hidden_scale", self.hidden(u))
        if residual is not None:
            x = residual + x
        return write(x.to(u.dtype), out)

    def rows(self, u: Tensor) -> Tensor:
        """What the first weight multiplies."""
        return u

    def hidden(self, u: Tensor) -> Tensor:
        """[B, H, W, H]: what the second weight multiplies."""
        return F.gelu(self._product("expand", "input_scale", u))

    def _product(self, name: str, scale: str, x: Tensor) -> Tensor:
        weight, bias = self.get_buffer(name), self.get_buffer(f"{name}_bias")
        if self.options[scale] is None:
            return F.linear(x, weight, bias)
        return int8.product(int8.quantise(x, self.options[scale]), weight, self.get_buffer(f"{name}_scale")) + bias
