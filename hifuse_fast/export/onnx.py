"""A network -> an ONNX file of plain operators, checked in ONNX Runtime where that is installed."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hifuse_fast._version import __version__
from hifuse_fast.backends.select import use_backend
from hifuse_fast.checkpoints.tensors import why_no_weight
from hifuse_fast.checks import check_choice, check_count, check_counts, check_flag
from hifuse_fast.export.official import OfficialLayout
from hifuse_fast.export.plain import check_plain
from hifuse_fast.files import replacing
from hifuse_fast.model import HiFuse, HiFuseFeatures

if TYPE_CHECKING:
    from hifuse_fast.data.images import Preprocess

OPSET = 18  #: of the files: the lowest that PyTorch's exporter writes, so that old runtimes read them
DYNAMIC = ("batch", "size")
INPUT = "images"
LIMIT = 1e-3  # of an error: rounding stays far below, what is wrong far above
_MOST_BYTES = 2**31 - 2**24  # of a file's weights: protobuf ends at 2 GiB
_TRACED = (2, 72, 104)  # batch and size where those are dynamic: no axis is 1 at any stage, and no two are equal


@dataclass(frozen=True)
class Exported:
    """What was written, and how it was checked."""

    path: Path
    opset: int
    dynamic: tuple[str, ...]
    outputs: tuple[str, ...]  #: their names in the graph
    runtime: str | None  #: what checked the file; None where ONNX Runtime is not installed, or no check was asked for
    checked: tuple[tuple[int, int, int], ...]  #: batch, height and width of the images of the check
    error: float | None  #: the largest difference from the reference, over the largest value of that output

    def __str__(self) -> str:
        axes = f"dynamic {' and '.join(self.dynamic)}" if self.dynamic else "fixed shapes"
        said = f"{self.path}: ONNX opset {self.opset}, {axes}"
        if self.error is None:
            return f"{said}; not checked in ONNX Runtime: pip install onnxruntime"
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.checked)
        return f"{said}; largest error {self.error:.1e} of the largest value in {self.runtime}, on {shapes}"


def to_onnx(
    model: Any,
    path: str | os.PathLike[str],
    *,
    image_size: int | Sequence[int] = 224,
    batch_size: int = 1,
    dynamic: bool | Sequence[str] = (),
    classes: Sequence[str] | None = None,
    preprocess: Preprocess | None = None,
    reading: Mapping[str, Any] | None = None,
    check: bool = True,
) -> Exported:
    """Write `model` as ONNX: float32, operators of ONNX alone, channels first as the official network.

    The input is "images" [B, in_chans, H, W]; the output "logits" [B, num_classes], "features" [B, C4] without a classifier, or
    of a `HiFuseFeatures` a map "stage1" to "stage4" each. A size that is no multiple of 32 is padded within the graph, as
    the network does. Of the same weights, the outputs are those of the reference but for rounding.

    The metadata of the file are texts: "hifuse_fast" and "torch" (versions), and in JSON "options" (of the network), "classes"
    (a list of names), "preprocess": the fields of `Preprocess`, and "color", which is "RGB", or "L" for one channel; and
    "reading", as given.

    Args:
        model: a `HiFuse` or `HiFuseFeatures`, in eval mode, in float32, on any one device; also wrapped by
            DistributedDataParallel or compiled. It stays as it is.
        path: of the file, which ends in .onnx. An old file is replaced, whole or not at all.
        image_size: side of the images, or (height, width); with a dynamic size, that of the preprocessing alone.
        batch_size: images of a call where the batch is not dynamic.
        dynamic: which axes may differ from call to call: "batch", "size" (height and width), both (True) or none (False). A
            dynamic size takes minutes to trace instead of seconds.
        classes: names of the logits, for the metadata.
        preprocess: how images were prepared in training, for the metadata; unless given, as in the official scripts. There is
            none for images that are not square, and for networks of neither 1 nor 3 channels.
        reading: how files became 8-bit images before that, for the metadata: options of `load_image` as JSON has them, such as
            {"bits": 12} or {"window": (40.0, 400.0)}.
        check: whether to run the file in ONNX Runtime, where that is installed, against the reference: at two batches or three
            sizes where those are dynamic. The result has the largest error.

    Raises:
        ImportError: the packages onnx or onnxscript, which PyTorch's exporter needs, are not installed.
        TypeError: `model` is no HiFuse, is frozen for inference or in another dtype; an argument of another type.
        ValueError: a model in training mode, on meta or several devices, with weights that are not finite, with more than 2 GiB
            of them, or changed: a replaced or hooked module, a program with our ops; any other argument that does not fit.
        OSError: the file cannot be written.
        RuntimeError: the check failed; nothing is written.
    """
    network = check_plain(model)
    _check_weights(network)
    path = _check_path(path)
    height, width = _check_size(image_size)
    shape = (check_count("batch_size", batch_size), height, width)
    axes = _check_dynamic(dynamic)
    metadata = _metadata(network, (height, width), classes, preprocess, reading)
    check_flag("check", check)
    _check_packages()
    with replacing(path) as unfinished:
        if next(network.parameters()).device.type != "cpu":
            network = copy.deepcopy(network).cpu()
        program = _trace(OfficialLayout(network).eval(), network, shape, axes)
        unfinished.write_bytes(_bytes(program.model_proto, metadata))
        checked, runtime, error = _shapes(shape, axes), None, None
        if check and importlib.util.find_spec("onnxruntime") is not None:
            runtime, error = _largest_error(network, unfinished, checked)
    return Exported(path, OPSET, axes, tuple(_outputs(network)), runtime, checked if runtime else (), error)


def _trace(layout: OfficialLayout, network: HiFuse, shape: tuple[int, int, int], axes: tuple[str, ...]) -> Any:
    """PyTorch's ONNX program of the network."""
    batch, height, width = shape
    named: dict[int, Any] = {}
    if "batch" in axes:
        batch, named[0] = _TRACED[0], torch.export.Dim("batch")
    if "size" in axes:
        (height, width), named[2], named[3] = _TRACED[1:], torch.export.Dim("height"), torch.export.Dim("width")
    images = _images(network, batch, height, width)
    with _quiet(), _plain_mode():
        return torch.onnx.export(
            layout, (images,), dynamo=True, verbose=False, opset_version=OPSET, input_names=[INPUT],
            output_names=_outputs(network), dynamic_shapes=(named,) if named else None,
        )  # fmt: skip


def _bytes(proto: Any, metadata: dict[str, str]) -> bytes:
    """The file's content: the graph without the places in our source, of which the exporter tells at each node."""
    graph = proto.graph
    for each in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del each.metadata_props[:]
        each.ClearField("doc_string")
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    content: bytes = proto.SerializeToString()
    return content


def _largest_error(network: HiFuse, path: Path, shapes: Sequence[tuple[int, int, int]]) -> tuple[str, float]:
    """ONNX Runtime's name, and the largest relative error of the file in it; RuntimeError where that is above the limit."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(out) for out in session.run(None, {INPUT: images.numpy()})]

    error = max(_error(network, run, _images(network, *shape)) for shape in shapes)
    name = f"onnxruntime {onnxruntime.__version__}"
    if not error <= LIMIT:  # also NaN
        raise RuntimeError(f"the graph is wrong by {error:.1e} of the largest value in {name}: nothing was written")
    return name, error


def _error(network: HiFuse, run: Callable[[Tensor], list[Tensor]], images: Tensor) -> float:
    """max|run - reference| / max|reference|, the largest over the outputs."""
    with _plain_mode(), use_backend("reference"):
        expected: Any = network(images)
    pairs = zip(run(images), expected if isinstance(expected, list) else [expected], strict=True)
    errors = [((a - e).abs().max() / e.abs().max().clamp(min=torch.finfo(e.dtype).tiny)).item() for a, e in pairs]
    return float(max(errors))


def _shapes(shape: tuple[int, int, int], axes: tuple[str, ...]) -> tuple[tuple[int, int, int], ...]:
    """Those that the check runs."""
    batch, height, width = shape
    more = batch + 2 if "batch" in axes else batch
    if "size" in axes:
        return shape, (more, 33, 97), (batch, 160, 20)
    return (shape, (more, height, width)) if more != batch else (shape,)


def _images(network: HiFuse, batch: int, height: int, width: int) -> Tensor:
    """Any images on the scale [-1, 1], the same each time."""
    generator = torch.Generator("cpu").manual_seed(0)
    return 2 * torch.rand(batch, network.in_chans, height, width, generator=generator, device="cpu", dtype=torch.float32) - 1


def _outputs(network: HiFuse) -> list[str]:
    if isinstance(network, HiFuseFeatures):
        return [f"stage{each['index'] + 1}" for each in network.feature_info.info]
    return ["logits" if network.num_classes else "features"]


def _metadata(
    network: HiFuse,
    size: tuple[int, int],
    classes: Sequence[str] | None,
    preprocess: Preprocess | None,
    reading: Mapping[str, Any] | None,
) -> dict[str, str]:
    found: dict[str, Any] = {"options": network.options.to_dict()}
    if classes is not None:
        found["classes"] = _check_classes(network, classes)
    prepared = _preprocess(network, size, preprocess)
    if prepared is not None:
        found["preprocess"] = prepared
    if reading is not None:
        if not isinstance(reading, Mapping):
            raise TypeError(f"reading must be a mapping of options and their values, got {type(reading).__name__}")
        found["reading"] = dict(reading)
    return {"hifuse_fast": __version__, "torch": torch.__version__, **{key: json.dumps(value) for key, value in found.items()}}


def _preprocess(network: HiFuse, size: tuple[int, int], given: Preprocess | None) -> dict[str, Any] | None:
    from hifuse_fast.data.images import Preprocess  # it imports Pillow

    channels = network.in_chans
    if given is None:
        if size[0] != size[1] or channels not in (1, 3):
            return None
        given = Preprocess(size[0], round(size[0] * 256 / 224))
    if not isinstance(given, Preprocess):
        raise TypeError(f"preprocess must be a hifuse_fast.data.images.Preprocess, got {type(given).__name__}")
    if size != (given.image_size, given.image_size):
        raise ValueError(f"preprocess must give images of image_size = {size}, got {given.image_size}")
    if channels not in (1, 3):
        raise ValueError(f"preprocess gives RGB images; the network takes images of in_chans = {channels}")
    colour = {"color": "RGB"} if channels == 3 else {"color": "L", "mean": given.mean[:1], "std": given.std[:1]}
    return dataclasses.asdict(given) | colour


def _check_classes(network: HiFuse, classes: Any) -> list[str]:
    count = 0 if isinstance(network, HiFuseFeatures) else network.num_classes
    if isinstance(classes, str) or not isinstance(classes, Sequence) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"classes must be a sequence of names, got {classes!r}")
    if len(classes) != count or len(set(classes)) != count or "" in classes:
        raise ValueError(f"classes must be {count} names, one a logit, each there and once; got {list(classes)!r}")
    return list(classes)


def _check_weights(network: HiFuse) -> None:
    tensors = network.state_dict()
    for name, tensor in tensors.items():
        reason = why_no_weight(tensor)
        if reason is not None:
            raise ValueError(f"model cannot be exported: {name} {reason}")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise TypeError(f"model must be in torch.float32, got {tensor.dtype} in {name}: call model.float() first")
    devices = {str(tensor.device) for tensor in tensors.values()}
    if len(devices) != 1:
        raise ValueError(f"model must be on one device, got {', '.join(sorted(devices))}")
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > _MOST_BYTES:
        raise ValueError(
            f"model must have at most 2 GiB of weights, which is what an ONNX file holds, got {size / 2**30:.1f} GiB"
        )


def _check_path(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)) or Path(path).suffix.lower() != ".onnx":
        raise ValueError(f"path must end in .onnx, got {path}")
    return Path(path)


def _check_size(size: Any) -> tuple[int, int]:
    if isinstance(size, Sequence) and not isinstance(size, str):
        height, width = check_counts("image_size", size, 2)
        return height, width
    side = check_count("image_size", size)
    return side, side


def _check_dynamic(dynamic: Any) -> tuple[str, ...]:
    if isinstance(dynamic, bool):
        return DYNAMIC if dynamic else ()
    if isinstance(dynamic, str) or not isinstance(dynamic, Sequence):
        raise TypeError(f"dynamic must be True, False or a sequence of {', '.join(DYNAMIC)}, got {dynamic!r}")
    return tuple(axis for axis in DYNAMIC if axis in [check_choice("dynamic", each, DYNAMIC) for each in dynamic])


def _check_packages() -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{' and '.join(missing)} cannot be imported, which the export needs: pip install onnx onnxscript")


@contextlib.contextmanager
def _plain_mode() -> Iterator[None]:
    """No gradients and no autocast, whatever the caller has switched on."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch's exporter says of packages that it does not need here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
