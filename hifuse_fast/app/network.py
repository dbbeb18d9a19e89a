"""A checkpoint or a frozen network's file -> the network that serves, and what it takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from hifuse_fast import (
    HiFuse,
    HiFuseOptions,
    OptimizedHiFuse,
    create_model_from_checkpoint,
    load_optimized,
    optimize_for_inference,
)
from hifuse_fast.app.predict import DTYPES
from hifuse_fast.checkpoints.kinds import is_frozen
from hifuse_fast.checkpoints.recognise import size_of
from hifuse_fast.inference.serve import can_freeze, freeze
from hifuse_fast.model import SIZES

CALIBRATING = "Calibrating on {} images, which may take minutes."
Prepare = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Network:
    """A network in eval mode, and what is to be known of it."""

    model: nn.Module
    options: HiFuseOptions
    dtype: str  #: of its weights and maps
    input_dtype: torch.dtype

    def prepare(self, preprocess: Prepare) -> Prepare:
        """`preprocess` for the channels that the network takes: RGB as it is, or greyscale."""
        return preprocess if self.options.in_chans == 3 else lambda image: preprocess(image.convert("L"))[:1]

    def described(self) -> dict[str, Any]:
        """Its size and options, for a file of results."""
        return {"name": size_of(self.options), **self.options.to_dict()}


def load_network(
    path: Path,
    device: torch.device,
    dtype: str | None,
    backend: str,
    *,
    size: str | None = None,
    channel_gate: str | None = None,
    ema: bool = False,
    greyscale: bool = False,
    calibration: Callable[[Network], Tensor] | None = None,
    note: Callable[[str], object],
) -> Network:
    """The network of a file, frozen for inference where kernels serve it.

    Args:
        path: a checkpoint, or a file of `OptimizedHiFuse.save`.
        device: where it goes.
        dtype: a key of `DTYPES`, or "int8"; None for float32, or of a frozen network what it was made in.
        backend: as in `use_backend`; a frozen network has its own, and takes "auto" alone.
        size: a name of `list_models` that it must be, or None.
        channel_gate, ema: see `create_model_from_checkpoint`.
        greyscale: whether images are converted for a network of one channel.
        calibration: with "int8" and a checkpoint, gives the images to calibrate on, for a network in float32.
        note: told what a user should know.

    Raises:
        ValueError, OSError, BackendError: an argument, or a network that does not fit; before any image is read.
    """
    if is_frozen(path):
        frozen = load_optimized(path, device)
        _check_frozen(path, frozen, dtype, backend, channel_gate, ema)
        check_fits(path, frozen.options, size, greyscale)
        if calibration is not None:
            raise ValueError(f"calibration is for checkpoints; {path} is a frozen network already")
        return Network(frozen, frozen.options, _dtype_of(frozen), torch.float32)  # it casts images itself
    dtype = dtype or "float32"
    if (calibration is not None) != (dtype == "int8"):
        raise ValueError(f"calibration must be given with dtype int8 and with no other, got dtype {dtype}")
    if calibration is not None:
        full = load_network(
            path, device, "float32", "reference", size=size, channel_gate=channel_gate, ema=ema, greyscale=greyscale, note=note
        )
        return _in_int8(full, backend, calibration(full), note)
    freezing = can_freeze(device, DTYPES[dtype], backend)
    loaded = torch.float32 if freezing else DTYPES[dtype]  # what is folded is folded before it is rounded
    model = read_model(path, device, channel_gate=channel_gate, ema=ema, dtype=loaded, note=note)
    check_fits(path, model.options, size, greyscale)
    return Network(freeze(model, DTYPES[dtype], note) if freezing else model, model.options, dtype, DTYPES[dtype])


def read_model(
    path: Path,
    device: torch.device | str = "cpu",
    *,
    channel_gate: str | None = None,
    ema: bool = False,
    dtype: torch.dtype = torch.float32,
    note: Callable[[str], object],
) -> HiFuse:
    """See `create_model_from_checkpoint`, whose warnings are told to `note`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        model = create_model_from_checkpoint(path, channel_gate, device, ema=ema, dtype=dtype)
    for warning in caught:
        note(str(warning.message))
    return model


def _in_int8(full: Network, backend: str, images: Tensor, note: Callable[[str], object]) -> Network:
    note(CALIBRATING.format(len(images)))
    frozen = optimize_for_inference(full.model, torch.int8, backend=backend, calibration=images)
    for line in str(frozen.certificate).splitlines():
        note(line)
    return Network(frozen, full.options, "int8", torch.float32)


def _dtype_of(network: OptimizedHiFuse) -> str:
    return network.configuration.dtype if network.certificate is None else "int8"


def _check_frozen(
    path: Path, network: OptimizedHiFuse, dtype: str | None, backend: str, channel_gate: str | None, ema: bool
) -> None:
    """ValueError where a user asks of a frozen network what was decided when it was frozen."""
    own = network.configuration
    for name, asked, has in (("dtype", dtype, _dtype_of(network)), ("channel_gate", channel_gate, own.channel_gate)):
        if asked not in (None, has):
            raise ValueError(f"{name} must be {has}, in which {path} was frozen, or not given; got {asked}")
    if backend != "auto":
        raise ValueError(f"backend must be auto for the frozen network {path}, which has its own; got {backend}")
    if ema:
        raise ValueError(f"ema is for checkpoints; {path} is a frozen network, and has one set of weights")
    if own.out_indices is not None:
        raise ValueError(f"{path} is a frozen backbone, which returns maps: it predicts no classes")


def check_fits(path: Path, options: HiFuseOptions, size: str | None, greyscale: bool) -> None:
    """ValueError unless the network is of the size that the user named, and takes the images that it will be given."""
    if size is not None:
        named = HiFuseOptions(**SIZES[size])
        for name in ("dims", "depths", "conv_depths"):
            has, should = getattr(options, name), getattr(named, name)
            if has != should:
                raise ValueError(f"checkpoint {path} is no {size}: its {name} are {has}, not {should}")
    if greyscale and options.in_chans != 1:
        raise ValueError(f"greyscale is for networks of one channel; that of {path} takes {options.in_chans}")
    if options.in_chans != (1 if greyscale else 3):
        advice = "; --greyscale converts them" if options.in_chans == 1 else ""
        raise ValueError(f"the network of {path} takes images of in_chans = {options.in_chans}, and they have 3{advice}")
