"""The network of a run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from hifuse_fast import HiFuse, create_model, create_model_from_checkpoint
from hifuse_fast.app.training.configuration import AUTO, Configuration
from hifuse_fast.app.training.state import State
from hifuse_fast.checkpoints.read import read_record
from hifuse_fast.model import SIZES
from hifuse_fast.options import HiFuseOptions

Note = Callable[[str], object]


def make_network(configuration: Configuration, classes: list[str], stored: State | None, note: Note) -> HiFuse:
    """A network with initial weights, or those of `init`; of a run that is resumed, the same one with any weights.

    Raises:
        TypeError, ValueError, OSError: options that do not fit, or a checkpoint that cannot be used, or is of another network.
    """
    if stored is not None:
        try:
            return HiFuse(**HiFuseOptions.from_dict(stored.facts["options"]).to_dict())
        except (TypeError, ValueError) as error:
            raise ValueError(f"the state has options of no network: {error}") from None
    torch.manual_seed(configuration.seed)
    name, options = configuration.model, dict(configuration.network)
    try:
        if configuration.init:
            network = _from_checkpoint(configuration.init, options, classes, note)
        else:
            network = create_model("hifuse_small" if name == AUTO else name, len(classes), **options)
    except TypeError as error:
        raise ValueError(f"network: {error}") from None
    if configuration.init and name != AUTO and network.options.depths != SIZES[name]["depths"]:
        raise ValueError(f"checkpoint {configuration.init} is no {name}: its depths are {network.options.depths}")
    if network.in_chans not in (1, 3):
        raise ValueError(f"network: in_chans must be 3, or 1 for greyscale, got {network.in_chans}")
    return network


def _from_checkpoint(path: str, options: dict[str, Any], classes: list[str], note: Note) -> HiFuse:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        network = create_model_from_checkpoint(path, **options)
    for warning in caught:
        note(str(warning.message))
    known = read_record(path).get("classes")
    if network.num_classes != len(classes) or known not in (None, classes):
        note(f"{path} has other classes ({network.num_classes}): the classifier is a new one, of {len(classes)}.")
        network.reset_classifier(len(classes))
    # As the network of a resumed run is made: the memory of a file begins anywhere, and on that the bits of products depend.
    copy = HiFuse(**network.options.to_dict())
    copy.load_state_dict(network.state_dict())
    return copy
