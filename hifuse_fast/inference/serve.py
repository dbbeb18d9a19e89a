"""A trained network -> the one that serves: frozen for inference where kernels can, else as it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from hifuse_fast.backends.select import BackendError
from hifuse_fast.inference.make import optimize_for_inference


def can_freeze(device: torch.device, dtype: torch.dtype, backend: str = "auto") -> bool:
    """Whether a network on `device` is to be frozen by `optimize_for_inference`: where its kernels serve it there.

    Under a backend asked for by name, only where that is the one of the device; in float16 on a CPU there are none.
    """
    kernels = "triton" if device.type == "cuda" else "native"
    return backend in ("auto", kernels) and (device.type == "cuda" or dtype != torch.float16)


def freeze(network: nn.Module, dtype: torch.dtype, refused: Callable[[str], object]) -> nn.Module:
    """The network frozen for inference in `dtype`; where a backend cannot serve that, itself in `dtype`.

    Args:
        network: in eval mode; float32 unless it exists in `dtype` alone: what is folded is folded before it is rounded.
        dtype: of the result.
        refused: told why it was not frozen.
    """
    try:
        return optimize_for_inference(network, dtype)
    except BackendError as error:
        refused(f"the network is not frozen for inference, which would be faster: {error}")
        return network.to(dtype)
