"""The launchers of the kernels for sm_90a alone, csrc/cuda/*_sm90.cu, and when they are taken: where the table says so."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.backends.cuda import library
from hifuse_fast.backends.cuda.launch import DTYPES, begins_aligned, launch, multiprocessors
from hifuse_fast.backends.tracing import constant

KERNELS = ("mlp_sm90", "mixer_sm90")  #: their sections of a table
WIDTHS = ((288, 96), (576, 192))  #: the most channels of u, and of the result, of an MLP
HIDDEN = 128  #: units that its kernel takes at a time
WIDE, SLAB = 288, 64  #: channels of a mixer: the one, or a multiple of the other


@contextlib.contextmanager
def taken(rows: int = 1) -> Iterator[None]:
    """Within the block, as if every table took the kernels from so many rows on: to check them."""
    with contextlib.ExitStack() as stack:
        for kernel in KERNELS:
            stack.enter_context(tables.override(kernel, {tables.ROWS: rows}))
        yield


def takes(rows: int, x: Tensor) -> bool:
    """Whether a map of pixels has so many, from which on a kernel is to be taken; 0 is never."""
    return rows > 0 and x.numel() // x.shape[-1] >= rows


def mlp_rows(expand: Tensor, project: Tensor) -> int:
    """From how many rows on `mlp` is to compute the MLP of such weights, as the table says; 0: never, or it cannot."""
    hidden, depth = expand.shape
    columns = len(project)
    if hidden % HIDDEN or depth % 8 or columns % 8 or not any(depth <= d and columns <= n for d, n in WIDTHS):
        return 0
    return _least_rows("mlp_sm90", tables.key(depth, hidden, columns, dtype=expand.dtype), expand.dtype, expand.device)


def mlp(
    u: Tensor, expand: Tensor, expand_bias: Tensor, project: Tensor, project_bias: Tensor, residual: Tensor | None, out: Tensor
) -> Tensor:
    """Write residual + gelu(u expand^T + expand_bias) project^T + project_bias to `out`, contiguous, and return that.

    Args:
        u: [B, H, W, K].
        expand, expand_bias: [hidden, K] and [hidden], contiguous and of the dtype of u, as those of project.
        project, project_bias: [N, hidden], [N].
        residual: like `out`, or None.
        out: [B, H, W, N].
    """
    (hidden, depth), columns = expand.shape, len(project)
    sizes = (DTYPES[u.dtype], u.numel() // depth, depth, hidden, columns, multiprocessors(u.device))
    into = out if begins_aligned(out) else torch.empty_like(out)
    given = (u.contiguous(), expand, expand_bias, project, project_bias, None if residual is None else residual.contiguous())
    launch("mlp_sm90", sizes, (), given, (into,))
    return out if into is out else out.copy_(into)


def mixer_rows(taps: Tensor) -> int:
    """The same of `mixer` and a mixer of such taps: a dense one's are [C, 9, C]."""
    channels = len(taps)
    if taps.dim() != 3 or (channels != WIDE and channels % SLAB):
        return 0
    return _least_rows("mixer_sm90", tables.key(channels, dtype=taps.dtype), taps.dtype, taps.device)


def mixer(z: Tensor, taps: Tensor, out: Tensor) -> Tensor:
    """Write z + gelu(conv(z)) to `out`, contiguous, and return that.

    Args:
        z: [B, H, W, C].
        taps: [C, 9, C], contiguous, of the dtype of z: of each result the 3x3 filter, row by row.
        out: like z.
    """
    sizes = (DTYPES[z.dtype], *z.shape, multiprocessors(z.device))
    into = out if begins_aligned(out) else torch.empty_like(out)
    launch("mixer_sm90", sizes, (), (z.contiguous(), taps), (into,))
    return out if into is out else out.copy_(into)


@constant  # torch.compile cannot trace the tables
def _least_rows(kernel: str, key: str, dtype: torch.dtype, device: torch.device) -> int:
    """From how many rows on the table wants a kernel for sm_90a; 0 for never, and where there is no such kernel."""
    architecture = tables.architecture(device)
    if not architecture.startswith("sm_9") or dtype.itemsize != 2 or not hasattr(library.lib, kernel):
        return 0
    return tables.least_rows(kernel, key, architecture, 0)
