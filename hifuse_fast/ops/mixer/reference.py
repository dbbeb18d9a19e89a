"""The mixer in plain PyTorch: the definition every kernel is tested against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.ops.prepared import PreparedOp, write


class Mixer(PreparedOp):
    """See `prepare_mixer`."""

    weight: Tensor

    @torch.no_grad()
    def forward(self, z: Tensor, out: Tensor | None = None) -> Tensor:
        channels, depth = self.weight.shape[:2]
        # Channels first, as the weight: PyTorch would else copy the weight at every call.
        x = z.permute(0, 3, 1, 2).contiguous()
        x = F.conv2d(x, self.weight, padding=1, groups=channels // depth).permute(0, 2, 3, 1)
        return write(z + F.gelu(x), out)
