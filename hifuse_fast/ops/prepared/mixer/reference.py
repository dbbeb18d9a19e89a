"""The prepared mixer in plain PyTorch: the definition every kernel is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from hifuse_fast.ops.functions.mixer.reference import mixer
from hifuse_fast.ops.prepared.base import PreparedOp, write


class Mixer(PreparedOp):
    """See `prepare_mixer`."""

    weight: Tensor

    @torch.no_grad()
    def forward(self, z: Tensor, out: Tensor | None = None) -> Tensor:
        return write(mixer(z, self.weight), out)
