"""The gated concatenation in CUDA C++, in two kernels: csrc/cuda/gated_concat.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from hifuse_fast.backends.cuda.launch import DTYPES, launch
from hifuse_fast.backends.tape import kept
from hifuse_fast.ops.functions.concat_norm import cuda as concat_norm
from hifuse_fast.ops.prepared.gated_concat import launched

why_not = concat_norm.why_not


class GatedConcat(launched.GatedConcat):
    """See `prepare_gated_concat`."""

    @torch.no_grad()
    def forward(self, local_map: Tensor, global_map: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
        out = x.new_empty((*x.shape[:3], 3 * x.shape[3])) if out is None else out
        if kept(
            "gated_concat", local_map=local_map, global_map=global_map, x=x, **self.packed(), out=out, **self.options
        ):  # fmt: skip
            return out
        sizes = (DTYPES[x.dtype], *x.shape, len(self.squeeze), int(self.options["double_sigmoid"]))
        numbers, maps = (self.options["eps"],), [each.contiguous() for each in (local_map, global_map, x)]
        reads = (*maps, self.filters, self.filter_bias, self.squeeze, self.expand, self.scale, self.shift)
        launch("gated_concat", sizes, numbers, reads, (out,), scratch_of="gated_concat_scratch")
        return out
