"""The prepared linear in CUDA C++: one kernel with all that is before the product and after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.cuda.launch import why_not as why_not_cuda
from hifuse_fast.backends.cuda.product import ACTIVATIONS, NORMS, SOURCES, product
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
        named = {"rows": o["rows"], "norm": o["norm"], "activation": o["activation"]}
        numbers = [known.index(each) for known, each in zip((SOURCES, NORMS, ACTIVATIONS), named.values(), strict=True)]
        if kept(
            "linear", maps=maps, weight=self.weight, bias=self.bias, residual=residual, out=out,
            **dict(zip(named, numbers, strict=True)), eps=o["eps"], pool=o["pool"],
        ):  # fmt: skip
            return out
        return product(
            maps, self.weight, self.bias, out, source=o["rows"], norm=o["norm"], eps=o["eps"], activation=o["activation"],
            pool=o["pool"], residual=residual,
        )  # fmt: skip
