"""From a trained network to the one that serves: frozen for inference where our kernels serve it, else as it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from hifuse_fast.backends.select import BackendError
from hifuse_fast.inference.make import optimize_for_inference


def can_freeze(device: torch.device, dtype: torch.dtype, backend: str = "auto") -> bool:
    """Whether `optimize_for_inference` has kernels for a network in `dtype` on `device`.

    A backend asked for by name must be the one of the device. In float16 there are no kernels for a CPU.
    """
    kernels = "triton" if device.type == "cuda" else "native"
    return backend in ("auto", kernels) and (device.type == "cuda" or dtype != torch.float16)


def freeze(network: nn.Module, dtype: torch.dtype, refused: Callable[[str], object]) -> nn.Module:
    """The network frozen for inference in `dtype`; where no backend can serve that, the network itself, cast to `dtype`.

    Args:
        network: in eval mode. Give it in float32 where it exists in that: weights are folded before they are rounded.
        dtype: of the result.
        refused: called with the reason where the network is not frozen.
    """
    try:
        return optimize_for_inference(network, dtype)
    except BackendError as error:
        refused(f"the network is not frozen for inference, which would be faster: {error}")
        return network.to(dtype)
