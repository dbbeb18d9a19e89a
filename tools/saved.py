"""Bytes that autograd keeps for the backward of a training step: ours against the reference. Of shapes alone: nothing runs.

The network stands on the meta device at its full width, its Triton kernels on record as if on an H200. Weights and maps are
bfloat16, because autocast does not know that device; under autocast layer norms of the reference keep float32 maps, so that
it keeps more than is counted here. Weights and buffers, which are there anyway, do not count; a tensor that two ops keep
counts once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast import HiFuse, create_model, list_models, use_backend
from hifuse_fast.backends.record import recording

BATCH, SIZE, NUM_CLASSES, ARCHITECTURE = 128, 224, 7, "sm_90"


def kept_mib(network: HiFuse, backend: str, batch: int = BATCH, size: int = SIZE) -> float:
    """MiB an image that the backward of `network`, on the meta device, needs of its forward by `backend`."""
    storages = {}

    def keep(x: Tensor) -> Tensor:
        storages[x.untyped_storage()._cdata] = x.untyped_storage()  # held, so that no other one takes its place
        return x

    dtype = next(network.parameters()).dtype
    images = torch.empty(batch, 3, size, size, device="meta", dtype=dtype)
    targets = torch.empty(batch, device="meta", dtype=torch.long)
    with recording(ARCHITECTURE), use_backend(backend), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        F.cross_entropy(network(images), targets)
    for weight in (*network.parameters(), *network.buffers()):
        storages.pop(weight.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in storages.values()) / batch / 2**20


def make(model: str) -> HiFuse:
    """The network in training mode on the meta device, bfloat16, channels last."""
    network = create_model(model, NUM_CLASSES, device="meta", dtype=torch.bfloat16).train()
    moved: HiFuse = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def table() -> tuple[list[str], list[list[str]]]:
    """The head and the lines: for each network MiB an image of both, and their ratio."""
    body = []
    for model in list_models():
        reference, ours = (kept_mib(make(model), backend) for backend in ("reference", "triton"))
        body.append([model, f"{reference:.1f}", f"{ours:.1f}", f"{100 * ours / reference:.0f} %"])
    return ["model", "reference, MiB an image", "hifuse_fast, MiB an image", "hifuse_fast of reference"], body
