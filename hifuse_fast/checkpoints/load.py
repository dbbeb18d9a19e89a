"""A file -> the trained network."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch

from hifuse_fast.blocks import CHANNEL_GATES
from hifuse_fast.checkpoints.errors import CheckpointError
from hifuse_fast.checkpoints.read import Checkpoint, read_checkpoint
from hifuse_fast.checkpoints.recognise import check_sizes, check_weights, deduce_options, fit
from hifuse_fast.checks import check_choice
from hifuse_fast.model import HiFuse, create_model
from hifuse_fast.options import RATES, HiFuseOptions


def create_model_from_checkpoint(
    path: str | os.PathLike[str],
    channel_gate: str | None = None,
    device: torch.device | str = "cpu",
    *,
    num_classes: int | None = None,
    ema: bool = False,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> HiFuse:
    """The trained network of a checkpoint, in eval mode.

    Its options and its `record` are those that `save_checkpoint` wrote into the file. Of any other file the options are deduced
    from the weights.

    Args:
        path: see `load_checkpoint`.
        channel_gate: what the file says unless given, and "sigmoid" where it says nothing. "double_sigmoid" is for checkpoints
            trained with the official code of September 2022 to 2024-01-16: they have the same names and shapes, and give other
            logits.
        device: where the network goes.
        num_classes: where it is not the checkpoint's, the classifier is replaced by a new one (to be trained).
        ema: see `load_checkpoint`.
        dtype: of the weights, whatever the file has.
        overrides: options of `create_model` that the weights do not fix (rates of dropout, `features_only`, `out_indices`).

    Raises:
        FileNotFoundError, CheckpointError: see `load_checkpoint` and `describe_checkpoint`.
        TypeError, ValueError: an option that does not fit, that the checkpoint fixes, or another `channel_gate`
            than the file says.
    """
    if channel_gate is not None:
        check_choice("channel_gate", channel_gate, CHANNEL_GATES)
    checkpoint = read_checkpoint(path, ema=ema)
    try:
        options = _options(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from None
    if checkpoint.options is not None and channel_gate not in (None, options.channel_gate):
        raise ValueError(f"channel_gate must be {options.channel_gate!r} or None, as {path} says, got {channel_gate!r}")
    options = replace(options, channel_gate=channel_gate or options.channel_gate)
    fixed = sorted(set(overrides) & (set(options.to_dict()) - set(RATES)))
    if fixed:
        said = getattr(options, fixed[0])
        raise TypeError(f"{', '.join(fixed)} cannot be overridden: the weights of {path} fix it as {said!r}")
    model = create_model("hifuse_tiny", **{**options.to_dict(), **overrides}, device="meta")
    try:
        check_weights(checkpoint.state_dict, model)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from None
    model.load_state_dict(fit(checkpoint.state_dict, model), assign=True)
    model.to(device=device, dtype=dtype)
    model.record = checkpoint.record
    if num_classes is not None and num_classes != options.num_classes:
        model.reset_classifier(num_classes)
    return model.eval()


def _options(checkpoint: Checkpoint) -> HiFuseOptions:
    if checkpoint.options is None:
        return deduce_options(checkpoint.state_dict)
    check_sizes(checkpoint.options, checkpoint.state_dict)
    return checkpoint.options
