"""The two ways to an `OptimizedHiFuse`: of a model's weights, folded and packed, or of a file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hifuse_fast import ops
from hifuse_fast.backends.native.packing import own
from hifuse_fast.backends.select import BACKENDS, BackendError, current_backend, prepared_class
from hifuse_fast.blocks import CHANNEL_GATES
from hifuse_fast.checkpoints import CheckpointError, describe_checkpoint, strip_prefixes
from hifuse_fast.checks import check_choice, check_dtype, check_flag
from hifuse_fast.inference import fold
from hifuse_fast.inference.network import (
    ALGORITHMS,
    DTYPES,
    FORMAT,
    MEMORY_FORMATS,
    VERSION,
    Configuration,
    OptimizedHiFuse,
)
from hifuse_fast.model import HiFuse, HiFuseFeatures
from hifuse_fast.ops.prepared.base import PreparedOp

_SHOWN = 4  # names in a message

Folding = Callable[[fold.Weights, str], fold.Folded]


def optimize_for_inference(
    model: nn.Module,
    dtype: torch.dtype = torch.float32,
    *,
    backend: str = "auto",
    algorithm: str = "auto",
    channel_gate: str | None = None,
    memory_format: torch.memory_format = torch.channels_last,
    cuda_graphs: bool = True,
) -> OptimizedHiFuse:
    """The network of `model` frozen for inference: weights folded in float64, packed once for the kernels, forward only.

    Batch norms go into the convolutions next to them, the scales and shifts of layer norms into the linears after them, and
    the two linears after the attention into one; what is left runs in the prepared ops of `hifuse_fast.ops`. The result
    shares no memory with `model`, which stays as it is.

    Args:
        model: a `HiFuse` or `HiFuseFeatures` of any options, or an instance of the official class, which is recognised by its
            state_dict; in eval mode, on one device.
        dtype: float32, bfloat16 or float16, of maps and weights (sums are float32). float64 with backend="reference" alone.
            float16 is for GPUs: "native" does not serve it, and on a CPU "auto" takes PyTorch's own ops for nearly all.
            In float16 a value above 65504 in a map becomes infinite, and so the result: such a network wants bfloat16.
        backend: of all ops: "auto" takes for each the fastest that can serve; "reference", "native" (on the CPU) or "triton"
            (on a GPU).
        algorithm: of convolutions and products. "auto" is the fastest: on a CPU Winograd's for the 3x3 convolutions, and in
            float32 Strassen's for MLPs and deep linears. "direct" rounds less, takes longer, and needs no more memory than the
            weights of the model. On Triton both are the direct one.
        channel_gate: "sigmoid" or "double_sigmoid", see `HFFBlock`; the model's own unless given, and "sigmoid" for an
            official instance.
        memory_format: torch.channels_last or torch.contiguous_format, of the maps that a `HiFuseFeatures` returns. Images are
            read as they lie, whatever their strides.
        cuda_graphs: on a GPU, whether calls of a shape are replayed as a CUDA graph from the second one on, see
            `OptimizedHiFuse`. Without, the first launches wait for the CPU, which small batches notice; nothing else changes.

    Raises:
        TypeError: `model` is no module or was optimised already; a dtype or memory format that is not served.
        ValueError: an unknown option; a model in training mode, on the meta device or on several, with weights that are not
            finite, or that is not HiFuse (the message names tensors that are missing or of another shape).
        BackendError: the backend asked for by name cannot serve.
    """
    weights, options = _check_model(model)
    check_dtype("dtype", dtype, tuple(DTYPES.values()))
    resolved = current_backend() if check_choice("backend", backend, BACKENDS) == "auto" else backend
    if dtype == torch.float64 and resolved != "reference":
        raise TypeError(
            "dtype must be torch.float32, torch.bfloat16 or torch.float16, "
            "got torch.float64, which backend='reference' alone serves"
        )
    if memory_format not in MEMORY_FORMATS.values():
        raise TypeError(f"memory_format must be torch.channels_last or torch.contiguous_format, got {memory_format!r}")
    own = next((module for module in model.modules() if isinstance(module, HiFuse)), None)
    gate = channel_gate or (own.fu1.channel_gate if own is not None else "sigmoid")
    configuration = Configuration(
        **options,
        channel_gate=check_choice("channel_gate", gate, CHANNEL_GATES),
        algorithm=check_choice("algorithm", algorithm, ALGORITHMS),
        dtype=_key(DTYPES, dtype),
        memory_format=_key(MEMORY_FORMATS, memory_format),
        out_indices=tuple(each["index"] for each in own.feature_info.info) if isinstance(own, HiFuseFeatures) else None,
        cuda_graphs=check_flag("cuda_graphs", cuda_graphs),
    )
    return OptimizedHiFuse(configuration, Packer(weights, dtype, backend))


def load_optimized(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> OptimizedHiFuse:
    """The network that `OptimizedHiFuse.save` wrote, on `device`. No code in the file runs.

    Args:
        path: of the file.
        device: "cpu" or a CUDA device, one that the backends serve which the file was packed for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: `device` is neither the CPU nor a CUDA device that is here.
        CheckpointError: it is truncated, no such file, of another version, or its tensors do not fit.
        BackendError: a backend that the file was packed for cannot serve here, or not on `device`.
    """
    path, device = Path(path), _check_device(device)
    if not path.is_file():
        raise FileNotFoundError(f"optimised network {path}: no such file")
    metadata, tensors = _read(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"optimised network {path}: not written by OptimizedHiFuse.save; for a checkpoint use create_model_from_checkpoint"
        )
    if metadata.get("version") != VERSION:
        found = metadata.get("version")
        raise CheckpointError(f"optimised network {path}: version must be {VERSION}, got {found}: optimise the model again")
    try:
        configuration = _configuration(metadata["configuration"])
        maker = Unpacker(tensors, json.loads(metadata["ops"]), DTYPES[configuration.dtype], device)
        network = OptimizedHiFuse(configuration, maker)
    except BackendError as error:
        again = f"optimise the model again on this machine, for {device.type}"
        raise BackendError(f"optimised network {path}: {error}; {again}") from None
    except CheckpointError as error:
        raise CheckpointError(f"optimised network {path}: {error}") from None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"optimised network {path}: its configuration does not fit ({error!r})") from None
    if len(maker.made) != len(maker.ops):
        others = _few(set(maker.ops) - set(maker.made))
        raise CheckpointError(f"optimised network {path}: it has ops that its configuration has not: {others}")
    return network


class Packer:
    """Makes ops of official weights."""

    def __init__(self, weights: fold.Weights, dtype: torch.dtype, backend: str) -> None:
        self.made: dict[str, PreparedOp] = {}
        self._weights, self._dtype, self._backend = weights, dtype, backend

    def __call__(self, op: str, folding: Folding, module: str = "", **options: Any) -> PreparedOp:
        name = _name(folding, module)
        prepare = getattr(ops, f"prepare_{op}")
        prepared: PreparedOp = prepare(**folding(self._weights, module), **options, dtype=self._dtype, backend=self._backend)
        # As from a file: without the checks of a user's calls.
        made = type(prepared)(prepared.packed(), **prepared.options)
        # The mixer folds nothing, and most weights are its: the model's own were checked, which fit but into float16.
        if folding is not fold.mixer or self._dtype == torch.float16:
            for key, tensor in made.packed().items():
                if not _is_finite(tensor):
                    raise ValueError(f"model has weights that are not finite once folded and in {self._dtype}: {key} of {name}")
        self.made[name] = made
        return made


class Unpacker:
    """Makes ops of packed tensors by name, on a device."""

    def __init__(
        self, tensors: Mapping[str, Tensor], ops: dict[str, dict[str, Any]], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.made: dict[str, PreparedOp] = {}
        self.ops = ops
        self._tensors, self._dtype, self._device = tensors, dtype, device
        expected = {f"{name}.{key}" for name, each in ops.items() for key in each["tensors"]}
        for kind, names in (("missing", expected - set(tensors)), ("unexpected", set(tensors) - expected)):
            if names:
                raise CheckpointError(f"{len(names)} tensors are {kind}: {_few(names)}")

    def __call__(self, op: str, folding: Folding, module: str = "", **_: Any) -> PreparedOp:
        name = _name(folding, module)
        if name not in self.ops:
            raise CheckpointError(f"the op {name} is missing")
        backend, options = self.ops[name]["backend"], self.ops[name]["options"]
        call = {"device": self._device, "dtype": self._dtype, **options, "backend": backend}
        cls = prepared_class(f"prepare_{op}", **call)
        made: PreparedOp = cls(
            {key: self._tensors[f"{name}.{key}"].to(self._device) for key in self.ops[name]["tensors"]}, **options
        )
        self.made[name] = made
        return made


def _check_model(model: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a model by their official names, and the options of its network."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, OptimizedHiFuse):
        raise TypeError("model must be a network with its official weights, got an OptimizedHiFuse: it is optimised already")
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        where = f"its {training} is" if training else "it is"
        raise ValueError(f"model must be in eval mode, {where} in training mode: call model.eval() first")
    weights = strip_prefixes(model.state_dict())
    try:
        options = describe_checkpoint(weights)
    except CheckpointError as error:
        raise ValueError(f"model must be HiFuse with the official state_dict: {error}") from None
    _check_weights(weights)
    for name in ("name", "qkv_bias", "mixer"):  # the tensors tell
        del options[name]
    return weights, options


def _check_weights(weights: Mapping[str, Tensor]) -> None:
    devices = {str(tensor.device) for tensor in weights.values()}
    if len(devices) != 1 or "meta" in devices:
        raise ValueError(f"model must have its weights on one device, and not on meta, got {', '.join(sorted(devices))}")
    for name, tensor in weights.items():
        if name.endswith(("num_batches_tracked", "relative_position_index")):
            continue
        if not tensor.is_floating_point():
            raise TypeError(f"model must have floating-point weights, got {tensor.dtype} for {name}")
        if not _is_finite(tensor):
            raise ValueError(f"model has weights that are not finite: {name}")


def _is_finite(tensor: Tensor) -> bool:
    return all(math.isfinite(end.item()) for end in tensor.aminmax())  # NaN where a value is; 15 times as fast as isfinite


def _check_device(device: Any) -> torch.device:
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be 'cpu' or a CUDA device, got {device!r}") from None
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or a CUDA device, got {device!r}")
    count = torch.cuda.device_count()
    if found.type == "cuda" and (found.index or 0) >= count:
        raise ValueError(f"device must be one of this machine, which has {count} CUDA devices, got {device!r}")
    return found


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            return opened.metadata() or {}, {name: own(opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
    raise CheckpointError(f"optimised network {path} cannot be read: it is damaged or no safetensors file ({reason})")


def _configuration(text: str) -> Configuration:
    fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in json.loads(text).items()}
    return Configuration(**fields)


def _name(folding: Folding, module: str) -> str:
    """An op's name in a file: what was folded of which module."""
    return f"{module}.{folding.__name__}".lstrip(".")


def _key(known: Mapping[str, Any], value: Any) -> str:
    return next(key for key, each in known.items() if each == value)


def _few(names: set[str]) -> str:
    return ", ".join(sorted(names)[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
