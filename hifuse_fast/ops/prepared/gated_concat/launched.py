"""The gated concatenation over launchers: the gates, then the function's forward, in the language of a backend's file."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from hifuse_fast.ops.prepared.base import Layout, PreparedOp


class GatedConcat(PreparedOp):
    """See `prepare_gated_concat`. Gates and what makes them are float32."""

    concat_norm: ClassVar[ModuleType]  #: the launchers of the function, of the backend whose class this is
    filters: Tensor  # [7, 7, 2]
    filter_bias: Tensor
    squeeze: Tensor
    expand: Tensor
    scale: Tensor
    shift: Tensor

    def gates(self, local_map: Tensor, global_map: Tensor) -> tuple[Tensor, Tensor]:
        """Of the channels of the global map, [B, 1, 1, C], and of the pixels of the local one, [B, H, W, 1]."""
        raise NotImplementedError

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        return PreparedOp.pack({**tensors, "filters": tensors["filters"].permute(1, 2, 0)}, torch.float32)

    @staticmethod
    def layout(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, **options: Any) -> Layout:
        return PreparedOp.layout({**shapes, "filters": (7, 7, 2)}, torch.float32)

    @torch.no_grad()
    def forward(self, local_map: Tensor, global_map: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        out = x.new_empty((*x.shape[:3], 3 * x.shape[3])) if out is None else out
        written: Tensor = self.concat_norm.write(
            [global_map, local_map, x], [*self.gates(local_map, global_map), None], self.scale, self.shift,
            self.options["eps"], out,
        )  # fmt: skip
        return written
