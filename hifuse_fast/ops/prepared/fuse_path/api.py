"""The contract of the fuse path: docstring, and whether one kernel does what its parts do."""

from __future__ import annotations

import importlib

import torch
from torch import nn

from hifuse_fast.backends.select import backend_of_parts
from hifuse_fast.ops.prepared.base import PreparedOp


def backend_of_fuse_path(backend: str, *, channels: int, first: bool, device: torch.device, dtype: torch.dtype) -> str:
    """The backend to prepare the parts of a path for, where `backend` was asked for: see `select.backend_of_parts`."""
    key = (channels, "" if first else "fused")
    return backend_of_parts("prepare_fuse_path", backend, key=key, device=device, dtype=dtype)


def prepare_fuse_path(
    *, local_linear: PreparedOp, global_linear: PreparedOp, up: PreparedOp | None, fuse: PreparedOp
) -> nn.Module:
    r"""The first half of a fusion, made of prepared linears, each of which is packed, calibrated and saved by itself.

    .. math:: w_f = \mathrm{pool}(\mathrm{relu}(W_f f + b_f)), \quad
        x = \mathrm{GELU}(W \, \mathrm{norm}([w_f, W_l l + b_l, W_g g + b_g]) + b)

    The path is called as `path(l, g, f, maps)`, with l and g [B, H, W, C] and f [B, 2 H, 2 W, C'], and returns x and w_f,
    [B, H, W, C]. In the first stage f and w_f are None, and the row is [W_l l + b_l, W_g g + b_g]. It takes maps for its
    results from `maps`, and gives f back (`inference/buffers.py`). Where all parts are CUDA's, and its kernel serves their
    sizes, the path of the first stage is one launch, over copies of their tensors in another order, from the number of pixels
    on that the table says. Else w_l, w_g and w_f are
    one launch, if their blocks are few, or a call each, and x is another one; also while a part was replaced or has a hook.

    Args:
        local_linear, global_linear: of `prepare_linear`, over pixels.
        up: likewise, with activation="relu" and pool; None in the first stage.
        fuse: likewise, with norm="row" and activation="gelu".

    Source: `W_l`, `W_g`, `Updim`, `W` and `W3` of the official HiFuse `HFF_block`.
    """
    parts = {"local_linear": local_linear, "global_linear": global_linear, "up": up, "fuse": fuse}
    path: nn.Module = importlib.import_module(f"{__package__}.reference").FusePath(**parts)
    if {part.backend for part in parts.values() if part is not None} == {"cuda"}:
        path.whole = importlib.import_module(f"{__package__}.cuda").whole(**parts)
    return path
