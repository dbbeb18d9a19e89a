"""Gates, concatenation and layer normalisation in plain PyTorch: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def concat_norm(maps: Sequence[Tensor], weight: Tensor, bias: Tensor, *, gates: Sequence[Tensor | None], eps: float) -> Tensor:
    """See `hifuse_fast.ops.concat_norm`; arguments are validated."""
    x = torch.cat([x if gate is None else gate * x for x, gate in zip(maps, gates, strict=True)], -1)
    return F.layer_norm(x, (x.size(-1),), weight, bias, eps)
