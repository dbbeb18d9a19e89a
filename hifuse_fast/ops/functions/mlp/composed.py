"""The backward of the MLP: products of the library over some pixels at a time, around a kernel that a backend's file brings.

The hidden units of these pixels lie in memory of bounded size. They are computed once more, and the gradients of the weights
are added up over the parts, one after another, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def backward(
    grad: Tensor,
    u: Tensor,
    expand_weight: Tensor,
    project_weight: Tensor,
    *,
    needs: Sequence[bool],
    scratch: int,
    gelu_backward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> list[Tensor | None]:
    """Gradients of u, expand_weight and project_weight in their dtypes.

    Args:
        scratch: KiB that the hidden units and their gradients may take.
        gelu_backward: of what goes into GELU and the gradient of what comes out: what comes out, and the gradient of what goes
            in. It may write over both.
    """
    need_u, need_expand, need_project = needs
    (hidden, depth), columns, dtype = expand_weight.shape, len(project_weight), expand_weight.dtype
    rows, grads = u.reshape(-1, depth), grad.reshape(-1, columns)
    count, size = parts(len(rows), 2 * hidden * dtype.itemsize, scratch)
    room = expand_weight.new_empty((2, size, hidden))
    du = expand_weight.new_empty(rows.shape if need_u else 0)
    dexpand, dproject = (expand_weight.new_empty(0) for _ in range(2))
    for i in range(count):
        part = slice(i * size, (i + 1) * size)
        x, dy = rows[part].to(dtype), grads[part].to(dtype)
        h = torch.mm(x, expand_weight.t(), out=room[0, : len(x)])
        dh = torch.mm(dy, project_weight, out=room[1, : len(x)])
        h, dh = gelu_backward(h, dh)
        if need_project:
            dproject = _add(dproject, dy.t() @ h, i, count)
        if need_expand:
            dexpand = _add(dexpand, dh.t() @ x, i, count)
        if need_u:
            torch.mm(dh, expand_weight, out=du[part])
    return [
        du.view(u.shape).to(u.dtype) if need_u else None,
        dexpand.to(dtype) if need_expand else None,
        dproject.to(dtype) if need_project else None,
    ]


def parts(rows: int, row_bytes: int, scratch: int, multiple: int = 1) -> tuple[int, int]:
    """Into how many parts of equal size the rows go, so that one fits into `scratch` KiB, and how many rows a part has.

    A part has a multiple of `multiple` rows, at least one of them. Where a program for every size is traced, the rows are a
    symbol, and all of them are one part.
    """
    if isinstance(rows, torch.SymInt):
        return 1, rows
    groups, most = _blocks(rows, multiple), max(1, scratch * 1024 // (row_bytes * multiple))
    size = _blocks(groups, max(1, _blocks(groups, most)))
    return max(1, _blocks(groups, max(1, size))), size * multiple


def _blocks(length: int, block: int) -> int:
    return (length + block - 1) // block  # of numbers that torch.compile may not know yet: no negative ones


def _add(total: Tensor, part: Tensor, i: int, count: int) -> Tensor:
    """`total` with the i-th of its parts, in float32 where there are several."""
    if count == 1:
        return part
    return part.float() if i == 0 else total.add_(part)
