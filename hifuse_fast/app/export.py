"""A checkpoint -> an ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from hifuse_fast.app.network import read_model
from hifuse_fast.app.remembered import Remembered
from hifuse_fast.checkpoints.kinds import is_frozen
from hifuse_fast.data.classes import load_classes
from hifuse_fast.data.images import Preprocess
from hifuse_fast.export import Exported, to_onnx


def export(
    checkpoint: Path,
    output: Path,
    classes: Path | None,
    preprocess: Preprocess,
    *,
    channel_gate: str | None = None,
    ema: bool = False,
    dynamic: Sequence[str] = (),
    batch_size: int = 1,
    note: Callable[[str], object],
) -> Exported:
    """Write the network of a checkpoint as ONNX; arguments are those of `create_model_from_checkpoint` and `to_onnx`.

    Args:
        classes: a file of names, see `load_classes`, or None for those that the checkpoint says, if it says any.
        preprocess: for the metadata; left out for networks of neither 1 nor 3 channels.
        note: told what a user should know.

    Raises:
        ValueError, OSError: an argument or a network that does not fit, or a package that is not installed.
    """
    if is_frozen(checkpoint):
        raise ValueError(f"{checkpoint} is a frozen network: export the checkpoint that it was made of")
    model = read_model(checkpoint, channel_gate=channel_gate, ema=ema, note=note)
    remembered = Remembered.of(checkpoint)
    names = None if remembered.classes is None else remembered.names(model.num_classes)
    if classes is not None:
        names = load_classes(classes, model.num_classes)
    prepared = preprocess if model.in_chans in (1, 3) else None
    try:
        return to_onnx(
            model, output, image_size=preprocess.image_size, batch_size=batch_size, dynamic=dynamic, classes=names,
            preprocess=prepared, reading=remembered.reading if prepared else None,
        )  # fmt: skip
    except ImportError as error:
        raise ValueError(str(error)) from None
