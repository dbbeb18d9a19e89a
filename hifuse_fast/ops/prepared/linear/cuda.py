"""The prepared linear in CUDA C++: one kernel with all that is before the product and after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.cuda.launch import why_not as why_not_cuda
from hifuse_fast.backends.cuda.product import ACTIVATIONS, NORMS, SOURCES, Product, products
from hifuse_fast.backends.tape import kept
from hifuse_fast.ops.prepared.base import PreparedOp


def why_not(*, device: torch.device, dtype: torch.dtype, input_scale: float | None = None, **_: Any) -> str | None:
    """The reason the CUDA kernels cannot serve this call, or None."""
    return why_not_cuda(device, dtype) if input_scale is None else "there is no CUDA kernel in int8"


class Linear(PreparedOp):
    """See `prepare_linear`."""

    weight: Tensor
    bias: Tensor

    @torch.no_grad()
    def forward(self, *maps: Tensor, residual: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        o, (batch, height, width, _) = self.options, maps[0].shape
        half = 2 if o["pool"] or o["rows"] == "patches" else 1
        out = maps[0].new_empty((batch, height // half, width // half, len(self.weight))) if out is None else out
        if self._is_kept(maps, out, residual):
            return out
        return products([self._product(maps, out, residual)])[0]

    @staticmethod
    @torch.no_grad()
    def together(calls: Sequence[tuple[Linear, Tensor, Tensor]]) -> list[Tensor]:
        """See `hifuse_fast.ops.prepared.together`. Where they are kept, C makes them one after another, with the same bits."""
        are_kept = [op._is_kept((x,), out, None) for op, x, out in calls]
        if all(are_kept):
            return [out for _, _, out in calls]
        return products([op._product((x,), out, None) for op, x, out in calls])

    def _is_kept(self, maps: Sequence[Tensor], out: Tensor, residual: Tensor | None) -> bool:
        o = self.options
        return kept(
            "linear", maps=tuple(maps), weight=self.weight, bias=self.bias, residual=residual, out=out,
            rows=SOURCES.index(o["rows"]), norm=NORMS.index(o["norm"]), activation=ACTIVATIONS.index(o["activation"]),
            eps=o["eps"], pool=o["pool"],
        )  # fmt: skip

    def _product(self, maps: Sequence[Tensor], out: Tensor, residual: Tensor | None) -> Product:
        o = self.options
        return Product(
            maps, self.weight, self.bias, out, source=o["rows"], norm=o["norm"], eps=o["eps"], activation=o["activation"],
            pool=o["pool"], residual=residual,
        )  # fmt: skip
