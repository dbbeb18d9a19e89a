"""A checkpoint -> the file of a frozen network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hifuse_fast import OptimizedHiFuse, optimize_for_inference
from hifuse_fast.app.network import CALIBRATING, Network, check_fits, read_model
from hifuse_fast.checkpoints.kinds import is_frozen
from hifuse_fast.files import check_replaceable


def freeze(
    checkpoint: Path,
    output: Path,
    dtype: torch.dtype,
    device: torch.device,
    *,
    backend: str = "auto",
    algorithm: str = "auto",
    channel_gate: str | None = None,
    ema: bool = False,
    greyscale: bool = False,
    calibration: Callable[[Network], Tensor] | None = None,
    most_changed: int | None = None,
    note: Callable[[str], object],
) -> OptimizedHiFuse:
    """Write the network of a checkpoint, frozen; arguments are those of `optimize_for_inference` and `load_network`.

    The output is checked before any work: calibration takes minutes.

    Raises:
        ValueError, OSError, BackendError: an argument or a network that does not fit; nothing is written then.
    """
    if is_frozen(checkpoint):
        raise ValueError(f"{checkpoint} is a frozen network already: freeze the checkpoint that it was made of")
    if output.suffix != ".safetensors":
        raise ValueError(f"output must end in .safetensors, got {output}")
    if (calibration is not None) != (dtype == torch.int8):
        raise ValueError(f"calibration must be given with dtype int8 and with no other, got dtype {_name(dtype)}")
    if most_changed is not None and dtype != torch.int8:
        raise ValueError(f"most_changed is for dtype int8, got dtype {_name(dtype)}")
    check_replaceable(output)
    model = read_model(checkpoint, device, channel_gate=channel_gate, ema=ema, note=note)
    images = None
    if calibration is not None:
        check_fits(checkpoint, model.options, None, greyscale)
        images = calibration(Network(model, model.options, "float32", torch.float32))
        note(CALIBRATING.format(len(images)))
    frozen = optimize_for_inference(
        model, dtype, backend=backend, algorithm=algorithm, calibration=images, most_changed=most_changed
    )
    frozen.save(output)
    return frozen


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
