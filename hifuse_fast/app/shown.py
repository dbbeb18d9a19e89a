"""The images that a report shows: as the network saw them, and where it saw the class that it named."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from hifuse_fast import HiFuse, create_model_from_checkpoint
from hifuse_fast.app.evaluate import Answered
from hifuse_fast.app.gradcam import grad_cam, overlay
from hifuse_fast.app.output import Row
from hifuse_fast.app.report import Mistake
from hifuse_fast.checkpoints.kinds import is_frozen
from hifuse_fast.data.images import Preprocess
from hifuse_fast.files import replacing

_LONGEST = 150  # bytes of a name; file systems take 255


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
        cam = None if model is None else overlaid(model, prepared, picture, int(answered.outcomes.predicted[index]), layer)
        shown.append(Mistake(index, picture, cam))
    return shown


class Overlays:
    """Images of a folder that show where the network saw the class that it named.

    Args:
        folder: where they go; it is made.
        total: how many images there are, which are numbered from 0.
        classes: the names of the classes.
        read, prepare, preprocess, model, layer: see `show`.
        replace: whether an image that is there is replaced; else it is an error.
    """

    def __init__(
        self, folder: Path, total: int, classes: Sequence[str], read: Callable[[Path], Image.Image],
        prepare: Callable[[Image.Image], Tensor], preprocess: Preprocess, model: HiFuse, layer: str, *, replace: bool,
    ) -> None:  # fmt: skip
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"gradcam {folder} exists and is no folder")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._digits, self._classes = folder, len(str(max(total - 1, 0))), list(classes)
        self._read, self._prepare, self._preprocess = read, prepare, preprocess
        self._model, self._layer, self._replace = model, layer, replace

    def add(self, rows: Iterable[Row], indices: Iterable[int]) -> Iterator[Row]:
        """The rows as they come, each with the path of its overlay, "" for an image that could not be used.

        Raises:
            ValueError: an overlay is there already.
        """
        for row, index in zip(rows, indices, strict=True):
            yield replace(row, beside=("" if row.label is None else str(self._draw(row, index)),))

    def _draw(self, row: Row, index: int) -> Path:
        stem = os.fsdecode(os.fsencode(row.path.stem)[:_LONGEST])
        path = self._folder / f"{index:0{self._digits}}-{stem}.png"
        if not self._replace and os.path.lexists(path):
            raise ValueError(f"gradcam {self._folder} must be a folder without overlays, but {path} is there")
        prepared = self._prepare(self._read(row.path))
        picture = as_picture(prepared, self._preprocess)
        found = overlaid(self._model, prepared, picture, self._classes.index(row.label or ""), self._layer)
        with replacing(path) as unfinished:
            found.save(unfinished, format="png")
        return path


def overlaid(model: HiFuse, prepared: Tensor, picture: Image.Image, label: int, layer: str) -> Image.Image:
    """A picture under the Grad-CAM of the class number `label` for the image that the network is given, [C, H, W]."""
    [found] = grad_cam(model, prepared[None].to(next(model.parameters()).device), [label], layer)
    return overlay(picture, found.cpu().numpy())


def as_picture(prepared: Tensor, preprocess: Preprocess) -> Image.Image:
    """What `preprocess` gave, all three channels or the first, as an 8-bit RGB image again."""
    mean, std = (torch.tensor(values)[: len(prepared), None, None] for values in (preprocess.mean, preprocess.std))
    values = ((prepared * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).expand(-1, -1, 3).contiguous().numpy())
