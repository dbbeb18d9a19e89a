"""The MLP on a CPU in float32: PyTorch's products, over some pixels at a time.

PyTorch's own way keeps the hidden map twice for the backward, before and after GELU, and goes through memory for each step.
Here the forward keeps it once, before GELU. GELU, its derivative and the products then take the part of it that is in the
cache. Without a backward no hidden map is ever whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.backends.native.library import why_not_native

PART = 1 << 20  #: hidden numbers of a part, 4 MiB
FEWEST = 512  #: pixels of a part: the gradients of the weights are read and written once for each


def why_not(*, device: torch.device, dtype: torch.dtype, **_: Any) -> str | None:
    """The reason that this cannot serve the call, or None."""
    if device.type == "cpu" and dtype != torch.float32:
        return f"its products are of float32, not {dtype}"
    return why_not_native(device=device, dtype=dtype)


def forward(u: Tensor, expand_weight: Tensor, project_weight: Tensor, *, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """See `hifuse_fast.ops.mlp`; arguments are validated. The second result is the hidden map before GELU, where it is kept."""
    rows = _rows(u)
    out = u.new_empty((*u.shape[:3], len(project_weight)))
    hidden = u.new_empty((rows.shape[0] if keep else 0, len(expand_weight)))
    for part in _parts(rows, expand_weight):
        expanded = torch.mm(rows[part], expand_weight.t(), **({"out": hidden[part]} if keep else {}))
        torch.mm(F.gelu(expanded), project_weight.t(), out=_rows(out)[part])
    return out, [hidden] if keep else []


def shapes(u: Tensor, expand_weight: Tensor, project_weight: Tensor, *, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """What `forward` gives, but for the values."""
    batch, height, width, _ = u.shape
    out = u.new_empty((batch, height, width, len(project_weight)))
    return out, [u.new_empty((batch * height * width, len(expand_weight)))] if keep else []


def backward(
    grad: Tensor, u: Tensor, expand_weight: Tensor, project_weight: Tensor, *, kept: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of u and of both weights."""
    (hidden,), (need_u, need_expand, need_project) = kept, needs
    rows, grad = _rows(u), _rows(grad)
    du = u.new_empty(u.shape) if need_u else None
    dexpand = torch.zeros_like(expand_weight, memory_format=torch.contiguous_format) if need_expand else None
    dproject = torch.zeros_like(project_weight, memory_format=torch.contiguous_format) if need_project else None
    for part in _parts(rows, expand_weight):
        if dproject is not None:
            dproject.addmm_(grad[part].t(), F.gelu(hidden[part]))
        if du is None and dexpand is None:
            continue
        dhidden = torch.ops.aten.gelu_backward(grad[part].mm(project_weight), hidden[part])
        if dexpand is not None:
            dexpand.addmm_(dhidden.t(), rows[part])
        if du is not None:
            torch.mm(dhidden, expand_weight, out=_rows(du)[part])
    return [du, dexpand, dproject]


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[3])


def _parts(rows: Tensor, expand_weight: Tensor) -> Iterator[slice]:
    """Of as many rows as are in the cache with their hidden units, all about as long."""
    length = len(rows)
    count = max(1, length // max(FEWEST, PART // len(expand_weight)))
    for i in range(count):
        yield slice(length * i // count, length * (i + 1) // count)
