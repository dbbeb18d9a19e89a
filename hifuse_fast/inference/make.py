"""The two ways to an `OptimizedHiFuse`: of a model's weights, folded and packed, or of a file."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hifuse_fast import ops
from hifuse_fast.backends.native.library import has_tiles, multiplies_bfloat16, own
from hifuse_fast.backends.select import BACKENDS, BackendError, current_backend, prepared_class
from hifuse_fast.checkpoints import CheckpointError
from hifuse_fast.checkpoints.kinds import SAFETENSORS, kind_of
from hifuse_fast.checkpoints.read import parse_record
from hifuse_fast.checkpoints.tensors import is_finite
from hifuse_fast.checks import check_choice, check_dtype
from hifuse_fast.inference import fold
from hifuse_fast.inference.calibrate import calibrate, check_calibration
from hifuse_fast.inference.calls import DERIVED
from hifuse_fast.inference.certificate import Certificate
from hifuse_fast.inference.configuration import (
    ALGORITHMS,
    CERTIFICATE,
    DTYPES,
    FORMAT,
    MEMORY_FORMATS,
    VERSION,
    Configuration,
)
from hifuse_fast.inference.network import OptimizedHiFuse
from hifuse_fast.inference.shapes import plain_shapes
from hifuse_fast.inference.source import Source, read_source
from hifuse_fast.model import STRIDE
from hifuse_fast.ops.prepared.base import Layout, PreparedOp
from hifuse_fast.ops.prepared.int8 import is_scale
from hifuse_fast.ops.prepared.linear.reference import Linear
from hifuse_fast.ops.prepared.local_block.reference import LocalBlock
from hifuse_fast.ops.prepared.mixer.reference import Mixer
from hifuse_fast.ops.prepared.mlp.reference import Mlp

_SHOWN = 4  # names in a message
_SCALES = ("input_scale", "hidden_scale")  # options of ops in int8

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
    calibration: Tensor | None = None,
    most_changed: int | None = None,
) -> OptimizedHiFuse:
    """The network of `model` frozen for inference: weights folded in float64, packed once for the kernels, forward only.

    Batch norms go into the convolutions next to them, the scales and shifts of layer norms into the linears after them, and
    the two linears after the attention into one; what is left runs in the prepared ops of `hifuse_fast.ops`.

    The result shares no memory with `model`, which stays as it is, and nothing that is done to `model` later changes it.
    The eps of each norm, the shift of each block and the gate of each fusion are what its module has now. None stands for
    ones as the weight of a norm, and for zeros as a bias. What a frozen network would leave out is refused: hooks, modules of
    another class, overridden methods, parametrisations. `conv_head` says the number of classes; nothing uses the official
    `head`, which may be anything.

    Args:
        model: a `HiFuse` or `HiFuseFeatures`, also compiled, or wrapped by DistributedDataParallel, AveragedModel or a module
            that has no forward of its own; or an instance of the official class, whose options are deduced from its
            state_dict. In eval mode, on one device.
        dtype: float32, bfloat16 or float16, of maps and weights (sums are float32). float64 with backend="reference" alone.
            float16 is for GPUs: "native" does not serve it, and on a CPU "auto" takes PyTorch's own ops for nearly all.
            In float16 a value above 65504 in a map becomes infinite, and so the result: such a network wants bfloat16.
            int8, on a CPU, is of products: those of MLPs and linears that the calibration images find exact enough. The rest
            and the maps are bfloat16 where the CPU multiplies it, else float32. `OptimizedHiFuse.certificate` says more.
        backend: of all ops: "auto" takes for each the fastest that can serve; "reference", "native" (on the CPU), "triton"
            or "cuda" (on a GPU).
        algorithm: of convolutions and products. "auto" is the fastest: on a CPU Winograd's for the 3x3 convolutions, and in
            float32 Strassen's for MLPs and deep linears. "direct" rounds less, takes longer, and needs no more memory than the
            weights of the model. On Triton both are the direct one, but where a table has measured Winograd's to be faster.
        channel_gate: "sigmoid" or "double_sigmoid", see `HFFBlock`; the model's own unless given, and "sigmoid" for an
            official instance.
        memory_format: torch.channels_last or torch.contiguous_format, of the maps that a `HiFuseFeatures` returns. Images are
            read as they lie, whatever their strides.
        cuda_graphs: on a GPU, whether calls of a shape are replayed as a CUDA graph from the second one on, see
            `OptimizedHiFuse`. Without, the first launches wait for the CPU, which small batches notice; nothing else changes.
        calibration: with int8, 32 images or more of the kind that the network will see, as it takes them, float32
            [N, in_chans, H, W]; it must see two classes or more in them. That takes minutes.
        most_changed: with int8, how many of them may change their class; as many as bfloat16 changes where that is None.

    Raises:
        TypeError: `model` is no module or was optimised already; a dtype or memory format that is not served.
        ValueError: int8 would change too many classes, or can serve too little; calibration images that are missing, too few,
            not finite or of one class; activations that are not finite.
        ValueError: an unknown option; a model in training mode, on the meta device or on several, with weights that are not
            finite; or that is not HiFuse, or does what a frozen network would not. The message names what it is.
        BackendError: the backend asked for by name cannot serve.
    """
    if isinstance(model, OptimizedHiFuse):
        raise TypeError("model must be a network with its official weights, got an OptimizedHiFuse: it is optimised already")
    source = read_source(model)
    check_dtype("dtype", dtype, (*DTYPES.values(), torch.int8))
    if dtype == torch.int8:
        _check_int8(source, calibration, most_changed)
    elif calibration is not None or most_changed is not None:
        raise ValueError(f"calibration and most_changed are for dtype=torch.int8, got {dtype}")
    resolved = current_backend() if check_choice("backend", backend, BACKENDS) == "auto" else backend
    if dtype == torch.float64 and resolved != "reference":
        raise TypeError(
            "dtype must be torch.float32, torch.bfloat16 or torch.float16, "
            "got torch.float64, which backend='reference' alone serves"
        )
    if memory_format not in MEMORY_FORMATS.values():
        raise TypeError(f"memory_format must be torch.channels_last or torch.contiguous_format, got {memory_format!r}")
    options, settings = source.options, source.settings
    if channel_gate is not None:
        options = replace(options, channel_gate=channel_gate)
        settings = {name: value for name, value in settings.items() if not name.endswith(".channel_gate")}
    configuration = Configuration(
        **options.to_dict(),
        algorithm=check_choice("algorithm", algorithm, ALGORITHMS),
        dtype=_key(DTYPES, torch.float32 if dtype == torch.int8 else dtype),
        memory_format=_key(MEMORY_FORMATS, memory_format),
        out_indices=source.out_indices,
        settings=settings,
        cuda_graphs=cuda_graphs,
    )
    if calibration is not None:
        return _in_int8(configuration, source, backend, calibration, most_changed)
    return OptimizedHiFuse(configuration, Packer(source.weights, dtype, backend), source.record)


def _check_int8(source: Source, calibration: Any, most_changed: Any) -> None:
    if calibration is None:
        raise ValueError("calibration must be given with dtype=torch.int8: images of the kind that the network will see")
    if source.out_indices is not None or source.options.num_classes < 2:
        raise ValueError("model must have a classifier of two classes or more for dtype=torch.int8, which is judged by classes")
    device = next(iter(source.weights.values())).device
    if device.type != "cpu":
        raise ValueError(f"model must be on the CPU for dtype=torch.int8, got {device}")
    check_calibration(calibration, source.options.in_chans, most_changed)


def _in_int8(
    configuration: Configuration, source: Source, backend: str, images: Tensor, most_changed: int | None
) -> OptimizedHiFuse:
    packed: dict[Any, PreparedOp] = {}

    def build(dtype: torch.dtype, scales: Mapping[str, Mapping[str, float]]) -> OptimizedHiFuse:
        maker = Packer(source.weights, dtype, backend, scales, packed)
        return OptimizedHiFuse(replace(configuration, dtype=_key(DTYPES, dtype)), maker, source.record)

    definitions = Packer(source.weights, torch.float32, "reference")
    OptimizedHiFuse(configuration, definitions)
    # In vectors of bfloat16 a mixer by Winograd's algorithm takes, by count, fewer instructions than one in int8.
    kinds = (Linear, LocalBlock, Mlp, *([Mixer] if has_tiles() or not multiplies_bfloat16() else []))
    references = {name: op for name, op in definitions.made.items() if isinstance(op, kinds)}
    dtype = torch.bfloat16 if multiplies_bfloat16() else torch.float32
    network, certificate = calibrate(build, dtype, references, images, most_changed)
    network.certificate = certificate
    return network


def load_optimized(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> OptimizedHiFuse:
    """The network that `OptimizedHiFuse.save` wrote, on `device`. No code in the file runs.

    Args:
        path: of the file.
        device: "cpu" or a CUDA device, one that the backends serve which the file was packed for.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: `device` is neither the CPU nor a CUDA device that is here.
        CheckpointError: it is damaged, something else, or of another version; an option is missing or does not fit; a tensor is
            missing, of another size or dtype than its configuration says, or not finite.
        BackendError: a backend that the file was packed for cannot serve here, or not on `device`.
    """
    path, device = Path(path), _check_device(device)
    metadata, tensors = _read(path)
    found = metadata.get("version")
    if found != VERSION:
        raise CheckpointError(f"optimised network {path}: version must be {VERSION}, got {found}: optimise the model again")
    try:
        configuration = Configuration.from_dict(json.loads(metadata["configuration"]))
        maker = Unpacker(tensors, json.loads(metadata["ops"]), configuration, device)
        network = OptimizedHiFuse(configuration, maker, parse_record(metadata))
        if len(maker.made) != len(maker.ops):
            raise CheckpointError(f"it has ops that its configuration has not: {_few(set(maker.ops) - set(maker.made))}")
        if CERTIFICATE in metadata:
            network.certificate = Certificate.from_dict(json.loads(metadata[CERTIFICATE]))
        elif any(op.options.get("input_scale") is not None for op in maker.made.values()):
            raise CheckpointError("it has ops in int8 and no certificate of them")
        if any(op.backend == "native" for op in maker.made.values()):
            _try(network, maker.made)
    except BackendError as error:
        again = f"optimise the model again on this machine, for {device.type}"
        raise BackendError(f"optimised network {path}: {error}; {again}") from None
    except CheckpointError as error:
        raise CheckpointError(f"optimised network {path}: {error}") from None
    except (AttributeError, IndexError, KeyError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"optimised network {path}: its configuration does not fit ({reason})") from None
    return network


class Packer:
    """Makes ops of official weights."""

    def __init__(
        self,
        weights: fold.Weights,
        dtype: torch.dtype,
        backend: str,
        scales: Mapping[str, Mapping[str, float]] | None = None,
        packed: dict[Any, PreparedOp] | None = None,
    ) -> None:
        """`scales`: those of the ops in int8, by name; `packed`: where ops are kept for networks with other ones in int8."""
        self.made: dict[str, PreparedOp] = {}
        self._weights, self._dtype, self._backend = weights, dtype, backend
        self._scales, self._packed = scales or {}, {} if packed is None else packed

    def __call__(self, op: str, folding: Folding, module: str = "", **options: Any) -> PreparedOp:
        name = _name(folding, module)
        key = (name, self._dtype, name in self._scales)
        if key not in self._packed:
            self._packed[key] = self._pack(name, op, folding, module, {**options, **self._scales.get(name, {})})
        self.made[name] = self._packed[key]
        return self.made[name]

    def backend_of(self, block: Callable[..., str], **sizes: Any) -> str:
        device = next(iter(self._weights.values())).device
        return block(self._backend, **sizes, device=device, dtype=self._dtype)

    def _pack(self, name: str, op: str, folding: Folding, module: str, options: Mapping[str, Any]) -> PreparedOp:
        prepare, options = getattr(ops, f"prepare_{op}"), {"backend": self._backend, **options}
        prepared: PreparedOp = prepare(**folding(self._weights, module), **options, dtype=self._dtype)
        # As from a file: without the checks of a user's calls.
        made = type(prepared)(prepared.packed(), **prepared.options)
        # The mixer folds nothing, and most weights are its: the model's own were checked, which fit but into float16.
        if folding is not fold.mixer or self._dtype == torch.float16:
            for key, tensor in made.packed().items():
                if not is_finite(tensor):
                    raise ValueError(f"model has weights that are not finite once folded and in {self._dtype}: {key} of {name}")
        return made


class Unpacker:
    """Makes ops of packed tensors by name, on a device."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        ops: dict[str, dict[str, Any]],
        configuration: Configuration,
        device: torch.device,
    ) -> None:
        self.made: dict[str, PreparedOp] = {}
        self.ops = ops
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(DERIVED)}  # which are made again
        self._tensors, self._configuration, self._device = tensors, configuration, device
        expected = {f"{name}.{key}" for name, each in ops.items() for key in each["tensors"]}
        for kind, names in (("missing", expected - set(tensors)), ("unexpected", set(tensors) - expected)):
            if names:
                raise CheckpointError(f"{len(names)} tensors are {kind}: {_few(names)}")

    def __call__(self, op: str, folding: Folding, module: str = "", **options: Any) -> PreparedOp:
        name = _name(folding, module)
        options.pop("backend", None)  # the file's is that of the op
        if name not in self.ops:
            raise CheckpointError(f"the op {name} is missing")
        entry, dtype = self.ops[name], DTYPES[self._configuration.dtype]
        backend, options = entry["backend"], _complete(name, op, entry["options"], options)
        call = {"device": self._device, "dtype": dtype, **options, "backend": backend}
        cls = prepared_class(f"prepare_{op}", **call)
        tensors = {key: self._tensors[f"{name}.{key}"] for key in entry["tensors"]}
        shapes = plain_shapes(self._configuration, folding.__name__, module)
        _check_tensors(name, tensors, None if backend == "native" else cls.layout(shapes, dtype, **options))
        made: PreparedOp = cls({key: tensor.to(self._device) for key, tensor in tensors.items()}, **options)
        self.made[name] = made
        return made

    def backend_of(self, block: Callable[..., str], **sizes: Any) -> str:
        return "auto"  # the file says it of each part


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
    """The metadata and the tensors of a frozen network's file."""
    try:
        kind = kind_of(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"optimised network {path}: no such file") from None
    except CheckpointError as error:
        raise CheckpointError(f"optimised network {path} cannot be read: it is {error}") from None
    other = "not written by OptimizedHiFuse.save; for a checkpoint use create_model_from_checkpoint"
    if kind != SAFETENSORS:
        raise CheckpointError(f"optimised network {path}: {other}")
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") == FORMAT:
                return metadata, {name: own(opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
        reason = f": {other}"
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        reason = f" cannot be read: it is damaged ({first})"
    raise CheckpointError(f"optimised network {path}{reason}")


def _check_tensors(name: str, tensors: Mapping[str, Tensor], layout: Layout | None) -> None:
    """Raise CheckpointError unless the packed tensors of the op `name` are finite, and of a layout where that is known."""
    for key, tensor in tensors.items():
        if not is_finite(tensor):
            raise CheckpointError(f"{name}.{key} has values that are not finite")
    if layout is None:
        return
    if set(layout) != set(tensors):
        raise CheckpointError(f"{name} must have the tensors {', '.join(layout)}, got {', '.join(tensors)}")
    for key, (shape, dtype) in layout.items():
        tensor = tensors[key]
        if (tuple(tensor.shape), tensor.dtype) != (tuple(shape), dtype):
            got = f"{tensor.dtype} {list(tensor.shape)}"
            raise CheckpointError(f"{name}.{key} must be {dtype} {list(shape)}, got {got}")


def _complete(name: str, op: str, said: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an op as the network asks for them; CheckpointError where a file says others.

    The algorithm is the file's: a network asks for "auto", and the op was packed for one. So are the scales of int8.
    """
    parameters = inspect.signature(getattr(ops, f"prepare_{op}")).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
    expected = {key: value for key, value in (defaults | dict(asked)).items() if key not in ("dtype", "backend")}
    if "scale" in expected and expected["scale"] is None:
        expected["scale"] = float(expected["head_dim"] ** -0.5)
    found = {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}
    if "algorithm" in expected:
        expected["algorithm"] = found.get("algorithm")
    for key in _SCALES:
        if key in expected and is_scale(found.get(key)):
            expected[key] = found.get(key)
    for key in [*expected, *found]:
        if key not in expected or key not in found or expected[key] != found[key]:
            wanted = f"{expected[key]!r}" if key in expected else "absent"
            raise CheckpointError(f"the option {key} of {name} must be {wanted}, got {found.get(key, 'none')!r}")
    return expected


def _try(network: OptimizedHiFuse, made: Mapping[str, PreparedOp]) -> None:
    """Raise CheckpointError where the compiled library, which alone knows its layouts, refuses a tensor: by one small image."""
    running = [""]
    hooks = [op.register_forward_pre_hook(lambda *_, name=name: running.__setitem__(0, name)) for name, op in made.items()]
    try:
        result = network(torch.zeros(1, device=network.device).expand(1, network.configuration.in_chans, STRIDE, STRIDE))
    except Exception as error:  # whatever tensors that do not fit lead to
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"the tensors of {running[0]} do not fit its configuration ({reason})") from None
    finally:
        for hook in hooks:
            hook.remove()
    width = network.configuration.num_classes or network.configuration.dims[-1]
    if isinstance(result, Tensor) and result.shape != (1, width):
        raise CheckpointError(f"num_classes must be {result.shape[1]}, as its tensors say, got {width}")
    network.forget_maps()


def _name(folding: Folding, module: str) -> str:
    """An op's name in a file: what was folded of which module."""
    return f"{module}.{folding.__name__}".lstrip(".")


def _key(known: Mapping[str, Any], value: Any) -> str:
    return next(key for key, each in known.items() if each == value)


def _few(names: set[str]) -> str:
    return ", ".join(sorted(names)[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
