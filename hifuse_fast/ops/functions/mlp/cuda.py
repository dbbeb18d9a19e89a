"""The MLP in CUDA C++: two launches of the product over some pixels at a time. The backward is composed, see composed.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.cuda import pointwise
from hifuse_fast.backends.cuda.launch import why_not as why_not_cuda
from hifuse_fast.backends.cuda.product import product
from hifuse_fast.ops.functions.mlp import composed

# KiB that hidden units may take: they are read where they were written, from the L2 cache of the device.
SCRATCH = 24 * 1024
ROWS = 128  # of a tile of the product, of which a part has a multiple


def why_not(*, device: torch.device, dtype: torch.dtype, **_: Any) -> str | None:
    """The reason the CUDA kernels cannot serve this call, or None."""
    return why_not_cuda(device, dtype)


def forward(u: Tensor, expand_weight: Tensor, project_weight: Tensor, *, keep: bool) -> tuple[Tensor, list[Tensor]]:
    """See `hifuse_fast.ops.mlp`; arguments are validated, the products are in the dtype of the weights."""
    out = expand_weight.new_empty((*u.shape[:3], len(project_weight)))
    return write(u.to(expand_weight.dtype), expand_weight, None, project_weight, None, None, out), []


def write(
    u: Tensor, expand: Tensor, expand_bias: Tensor | None, project: Tensor, project_bias: Tensor | None,
    residual: Tensor | None, out: Tensor,
) -> Tensor:  # fmt: skip
    """`forward` with biases and a residual where they are given, into `out`, contiguous."""
    (hidden, depth), columns, image = expand.shape, len(project), u.shape[1] * u.shape[2]
    rows, target = u.reshape(-1, 1, 1, depth), out.view(-1, 1, 1, columns)
    added = None if residual is None else residual.view(target.shape)
    count, size = composed.parts(rows.shape[0], hidden * expand.element_size(), SCRATCH, ROWS)  # no `len`: it is no symbol
    room = expand.new_empty((rows.shape[0] if count == 1 else size, 1, 1, hidden))
    for i in range(count):
        part = slice(None) if count == 1 else slice(i * size, (i + 1) * size)
        of_part = rows[part]
        h = room if count == 1 else room[: of_part.shape[0]]
        product([of_part], expand, expand_bias, h, activation="gelu", image_rows=image)
        product(
            [h], project, project_bias, target[part], residual=None if added is None else added[part], image_rows=image
        )  # fmt: skip
    return out


def backward(
    grad: Tensor, u: Tensor, expand_weight: Tensor, project_weight: Tensor, *, kept: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of u, expand_weight and project_weight in their dtypes."""

    def gelu_backward(h: Tensor, dh: Tensor) -> tuple[Tensor, Tensor]:
        dz, activated = pointwise.gelu_backward(dh, h, activate=True)
        assert activated is not None
        return activated, dz

    return composed.backward(
        grad, u, expand_weight, project_weight, needs=needs, scratch=SCRATCH, gelu_backward=gelu_backward
    )  # fmt: skip
