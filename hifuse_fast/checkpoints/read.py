"""A file -> a state_dict: read so that no code runs, taken out of its wrappers, its values checked."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hifuse_fast.checkpoints.errors import CheckpointError
from hifuse_fast.checkpoints.kinds import FROZEN, SAFETENSORS, kind_of
from hifuse_fast.checkpoints.tensors import is_float8, why_no_weight
from hifuse_fast.options import HiFuseOptions

OPTIONS = "hifuse_fast.options"  #: the key of the metadata that has the network's options, as JSON

RECORD = "hifuse_fast.record"  #: the key of what a training said of the network, as JSON

WRAPPERS = ("module.", "_orig_mod.")  # prefixes that DistributedDataParallel and torch.compile put before every name
_PREFIXES = (*WRAPPERS, "model.", "net.", "network.", "backbone.", "ema.", "ema_model.", "model_ema.", "averaged_model.")
_NETWORK = ("net", "model", "state_dict", "model_state_dict")  # keys that training scripts choose for the weights
_NO_WEIGHTS = re.compile("optim|sched|scaler")  # keys of other states that have tensors
_EMA = re.compile(r"(^|[^a-z])ema([^a-z]|$)|averaged")  # keys of a moving average
_COUNTERS = re.compile(r"(^|\.)(total_ops|total_params|n_averaged)$")  # of thop, and of torch's AveragedModel
_DEEPEST = 6  # mappings in one another

# Types that training scripts save beside the weights. Nothing here needs their values: a stand-in takes the place of each.
_PATHS = ("", "Posix", "Windows", "PurePosix", "PureWindows")
_BESIDE = (
    "argparse.Namespace",
    *(f"numpy.{core}.multiarray.{each}" for core in ("core", "_core") for each in ("scalar", "_reconstruct")),
    "numpy.ndarray",
    "numpy.dtype",
    *(f"pathlib.{local}{each}Path" for local in ("", "_local.") for each in _PATHS),
)


class Checkpoint(NamedTuple):
    """What a file holds: weights by name, and the options and the record of their network where `save_checkpoint` wrote it."""

    state_dict: dict[str, Tensor]
    options: HiFuseOptions | None
    record: dict[str, Any]


class _Beside:
    """In place of an object of a known type: it keeps nothing of what the file says, and no code of the type runs."""

    def __new__(cls, *_: Any) -> _Beside:
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass


def load_checkpoint(
    path: str | os.PathLike[str], device: torch.device | str = "cpu", *, ema: bool = False
) -> dict[str, Tensor]:
    """The state_dict in a file, for any network: names without wrappers and prefixes, every value a finite tensor.

    The first bytes tell whether it is safetensors or a torch file, which is read with weights_only=True; no code in it runs.
    The weights are the mapping whose values are tensors, however deep it lies, as {"state_dict": ...}. Prefixes such as
    "module.", "_orig_mod.", "model.", "net.", "backbone." go where all names carry them. float8 becomes float32.

    Args:
        path: of the file, whatever its suffix.
        device: where the tensors go.
        ema: take the moving average of the weights that the file holds beside them. Without, a warning says that it is there.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged or something else, holds other objects than tensors, or a tensor that can be no weight:
            quantised, complex, sparse, on meta, or not finite.
    """
    return {name: tensor.to(device) for name, tensor in read_checkpoint(path, ema=ema).state_dict.items()}


def read_checkpoint(path: str | os.PathLike[str], *, ema: bool = False) -> Checkpoint:
    """What a file holds, on the CPU; see `load_checkpoint`."""
    path = Path(path)
    content, metadata = _read(path)
    state_dict = strip_prefixes(_find_weights(path, content, ema), _PREFIXES)
    for name, tensor in state_dict.items():
        reason = why_no_weight(tensor)
        if reason is not None:
            raise CheckpointError(f"checkpoint {path}: {name} {reason}")
        if is_float8(tensor):
            state_dict[name] = tensor.float()
    return Checkpoint(state_dict, _options(path, metadata), _record(path, metadata))


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_checkpoint` was given as `record`, also of a frozen network's file; empty where a file has none.

    Raises:
        FileNotFoundError, CheckpointError: see `load_checkpoint`; or the record is damaged.
    """
    path = Path(path)
    if _kind(path) != SAFETENSORS:
        return {}
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"checkpoint {path}: it is damaged ({_first_line(str(error))})") from None
    return _record(path, metadata)


def is_counter(name: str) -> bool:
    """Whether it is the name of a count beside the weights, as AveragedModel has one."""
    return _COUNTERS.search(name) is not None


def strip_prefixes(state_dict: Mapping[str, Tensor], prefixes: tuple[str, ...] = WRAPPERS) -> dict[str, Tensor]:
    """The state_dict without those of `prefixes` that stand before every name."""
    names = list(state_dict)
    while True:
        prefix = next((p for p in prefixes if all(name.startswith(p) for name in names)), None)
        if prefix is None or not names:
            return dict(zip(names, state_dict.values(), strict=True))
        names = [name.removeprefix(prefix) for name in names]


def _kind(path: Path) -> str:
    try:
        return kind_of(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"checkpoint {path}: no such file") from None
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: it is {error}") from None


def _read(path: Path) -> tuple[Any, dict[str, str]]:
    """The content of a file, and its metadata."""
    kind = _kind(path)
    try:
        if kind != SAFETENSORS:
            beside = torch.serialization.safe_globals([(_Beside, name) for name in _BESIDE])
            with path.open("rb") as file, beside:  # of a path torch.load would judge by the suffix
                return torch.load(file, map_location="cpu", weights_only=True), {}
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
        if metadata.get("format") != FROZEN:
            return safetensors.torch.load_file(path), metadata
        reason = "it is a network frozen for inference: load it with load_optimized"
    except (OSError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        reason = _name_objects(str(error))
    except Exception as error:  # whatever a damaged file leads a reader to
        reason = f"it is damaged or no checkpoint ({_first_line(str(error)) or type(error).__name__})"
    raise CheckpointError(f"checkpoint {path} cannot be read: {reason}")


def _name_objects(error: str) -> str:
    """What torch says of an object that it does not load."""
    found = re.search(r"GLOBAL (\S+)", error)
    if found is None:
        _, _, detail = error.partition("WeightsUnpickler error: ")
        return f"it is damaged, or holds objects that could run code ({_first_line(detail or error)})"
    return (
        f"it holds an object of type {found[1]}, and to load it could run code: where you trust the file, load it with"
        " weights_only=False and save the state_dict alone"
    )


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


def _options(path: Path, metadata: Mapping[str, str]) -> HiFuseOptions | None:
    if OPTIONS not in metadata:
        return None
    try:
        return HiFuseOptions.from_dict(json.loads(metadata[OPTIONS]))
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path}: the options in its metadata do not fit: {error}") from None


def _record(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        return parse_record(metadata)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from None


def parse_record(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The record in the metadata of a file; empty where there is none. CheckpointError where it is damaged."""
    try:
        record = json.loads(metadata.get(RECORD, "{}"))
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise CheckpointError("the record in its metadata is damaged")
    return record


class _Found(NamedTuple):
    place: tuple[str, ...]  # keys that lead there
    weights: Mapping[str, Tensor]

    @property
    def is_ema(self) -> bool:
        return any(_EMA.search(key.lower()) for key in self.place)

    def __str__(self) -> str:
        return repr(".".join(self.place))


def _find_weights(path: Path, content: Any, ema: bool) -> Mapping[str, Tensor]:
    """The mapping of tensors in the content of a file; a warning where an average lies beside it and was not asked for."""
    found = list(_mappings(content, (), set()))
    averages, others = ([each for each in found if each.is_ema is kind] for kind in (True, False))
    if not found:
        raise CheckpointError(f"checkpoint {path} must hold {_describe(content)}")
    if ema and not averages:
        raise CheckpointError(f"checkpoint {path} has no moving average (EMA) of its weights")
    taken = _choose(path, averages if ema or not others else others)
    if averages and others and not ema:
        warnings.warn(
            f"{path} holds weights at {taken} and their moving average (EMA) at {averages[0]}: the weights were taken;"
            " ema=True, or --ema, takes the average",
            stacklevel=4,
        )
    return taken.weights


def _mappings(content: Any, place: tuple[str, ...], seen: set[int]) -> Iterator[_Found]:
    """The mappings of names to tensors, each once, at any depth; one with an average under a prefix of its own is two."""
    if not isinstance(content, Mapping) or not content or id(content) in seen or len(place) > _DEEPEST:
        return
    seen.add(id(content))
    if all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        content = {name: tensor for name, tensor in content.items() if not is_counter(name)}
        averages = {name: tensor for name, tensor in content.items() if _EMA.search(name.partition(".")[0].lower())}
        if averages:
            yield _Found((*place, next(iter(averages)).partition(".")[0]), averages)
        if len(averages) < len(content):
            yield _Found(place, {name: tensor for name, tensor in content.items() if name not in averages})
        return
    for key, value in content.items():
        if isinstance(key, str) and not _NO_WEIGHTS.search(key.lower()):
            yield from _mappings(value, (*place, key), seen)


def _choose(path: Path, found: list[_Found]) -> _Found:
    """Of several mappings the one under a usual key, else the largest."""
    found = [each for each in found if set(each.place) & set(_NETWORK)] or found
    most = max(len(each.weights) for each in found)
    largest = [each for each in found if len(each.weights) == most]
    if len(largest) > 1:
        places = " and ".join(map(str, largest))
        raise CheckpointError(f"checkpoint {path} holds {len(largest)} sets of weights, at {places}: save one of them alone")
    return largest[0]


def _describe(content: Any) -> str:
    """What a file without weights should hold, and what it has."""
    if not isinstance(content, Mapping) or not content:
        return f"a state_dict, got {type(content).__name__} without weights"
    others = [(name, value) for name, value in content.items() if not isinstance(value, Tensor)]
    name, value = (others or list(content.items()))[0]
    kind = "a NumPy or argparse object" if isinstance(value, _Beside) else type(value).__name__
    return f"tensors by name, got {kind} for {name!r}"
