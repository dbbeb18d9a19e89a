"""The images that a report shows: as the network saw them, and where it saw the class that it named."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from hifuse_fast import HiFuse, create_model_from_checkpoint
from hifuse_fast.app.evaluate import Answered
from hifuse_fast.app.gradcam import grad_cam, overlay
from hifuse_fast.app.report import Mistake
from hifuse_fast.checkpoints.kinds import is_frozen
from hifuse_fast.data.images import Preprocess


def with_gradients(checkpoint: Path, channel_gate: str | None, ema: bool, device: torch.device) -> HiFuse | None:
    """The network of a checkpoint in float32, which Grad-CAM can look into; None where the file is a frozen one."""
    if is_frozen(checkpoint):
        return None
    with warnings.catch_warnings():  # they were said when the network was loaded to be measured
        warnings.simplefilter("ignore", UserWarning)
        return create_model_from_checkpoint(checkpoint, channel_gate, device, ema=ema)


def show(
    answered: Answered,
    indices: Sequence[int],
    read: Callable[[Path], Image.Image],
    prepare: Callable[[Image.Image], Tensor],
    preprocess: Preprocess,
    model: HiFuse | None,
    layer: str,
) -> list[Mistake]:
    """The images `indices` of `answered`, under Grad-CAM of the class that was predicted, where there is a model to ask.

    Args:
        answered: all images.
        indices: those to be shown.
        read: file -> image.
        prepare: image -> what the network takes, [C, H, W].
        preprocess: what `prepare` stands on.
        model: see `with_gradients`.
        layer: see `grad_cam`.
    """
    shown = []
    for index in indices:
        prepared = prepare(read(answered.examples[index].path))
        picture = as_picture(prepared, preprocess)
        cam = None
        if model is not None:
            images = prepared[None].to(next(model.parameters()).device)
            [found] = grad_cam(model, images, [int(answered.outcomes.predicted[index])], layer)
            cam = overlay(picture, found.cpu().numpy())
        shown.append(Mistake(index, picture, cam))
    return shown


def as_picture(prepared: Tensor, preprocess: Preprocess) -> Image.Image:
    """What `preprocess` gave, all three channels or the first, as an 8-bit RGB image again."""
    mean, std = (torch.tensor(values)[: len(prepared), None, None] for values in (preprocess.mean, preprocess.std))
    values = ((prepared * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).expand(-1, -1, 3).contiguous().numpy())
