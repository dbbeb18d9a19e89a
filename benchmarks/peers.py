"""The engines of `make bench-cpu`, set up as their makers document it, all from the same eager network in float32.

Engines that take a graph get the file of `hifuse_fast.export.to_onnx`, whose maps are channels first as the official network's;
those of `OWN_GRAPH` get our reference, whose maps are channels last. Which is faster differs from machine to machine.

Engines in int8 are calibrated on the same samples. What they do not multiply in 8 bits is in the dtype that serves the CPU
best.

An engine is a function from a network (its own copy), images and a dtype to the call that is timed, which returns the logits of
these images. One that cannot run here raises `MissingError` with the reason. Each is prepared in a process of its own
(`bench.worker`), so settings that are global may be set here. Optional packages are imported by name when they are used.
"""

from __future__ import annotations

import contextlib
import importlib
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hifuse_fast
from hifuse_fast.bench import machine, samples
from hifuse_fast.bench.network import DTYPES, backend_engine
from hifuse_fast.bench.worker import Call, Engine, MissingError, NotedCall
from hifuse_fast.inference.certificate import Certificate

INT8 = " int8"  #: in the name of an engine in int8
CALIBRATION = 32  #: images
PRECISION = {torch.float32: "f32", torch.bfloat16: "bf16"}  #: as OpenVINO calls them


def optional(package: str) -> Any:
    """The module of an optional package.

    Raises:
        MissingError: it cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except Exception as error:  # a package for another CPU or another torch may raise anything
        raise MissingError(f"{package} cannot be imported ({error}); pip install 'hifuse_fast[peers]'") from error


def eager(network: nn.Module, images: Tensor, dtype: torch.dtype) -> Call:
    """The official network in PyTorch as it comes: channels first; in bfloat16 weights and images are cast."""
    return torch.inference_mode()(partial(backend_engine("reference")(network.to(dtype)), images.to(dtype)))


def eager_channels_last(network: nn.Module, images: Tensor, dtype: torch.dtype) -> Call:
    """PyTorch as its tuning guide advises: weights channels last, bfloat16 by autocast."""
    return torch.inference_mode()(_autocast(_channels_last(network), images, dtype))


def compiled(network: nn.Module, images: Tensor, dtype: torch.dtype) -> Call:
    """torch.compile for this batch size alone, weights frozen into the graph and packed."""
    return _compile("inductor", network, images, dtype)


def zentorch(network: nn.Module, images: Tensor, dtype: torch.dtype) -> Call:
    """AMD's backend of torch.compile; its fusions of convolutions need static shapes."""
    optional("zentorch")
    dynamo: Any = importlib.import_module("torch._dynamo.config")
    dynamo.automatic_dynamic_shapes = False
    return _compile("zentorch", network, images, dtype)


def onnxruntime(network: nn.Module, images: Tensor, dtype: torch.dtype, *, own_graph: bool = False) -> Call:
    """ONNX Runtime, of this batch size."""
    if dtype != torch.float32:
        raise MissingError(f"its CPU kernels have no {str(dtype).removeprefix('torch.')}")
    runtime = optional("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with _onnx_file(network, images, own_graph) as path:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: images.numpy()}
    return lambda: torch.from_numpy(session.run(None, inputs)[0])


def openvino(network: nn.Module, images: Tensor, dtype: torch.dtype, *, hint: str, own_graph: bool = False) -> Call:
    """OpenVINO on the ONNX file; the precision is set because its own choice is bfloat16 where the CPU has it.

    In int8, NNCF has quantised the file.

    The hint THROUGHPUT runs several requests at once, so they share the batch: as many as divide it and have a thread each.
    """
    requests = 1 if hint == "LATENCY" else _share(len(images), torch.get_num_threads())
    if hint == "THROUGHPUT" and requests == 1:
        raise MissingError("it runs several requests at once, and this batch cannot be shared")
    runtime = optional("openvino")
    int8 = dtype == torch.int8
    settings = {
        "INFERENCE_PRECISION_HINT": PRECISION[usual() if int8 else dtype],
        "PERFORMANCE_HINT": hint,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT_NUM_REQUESTS": requests,
    }
    parts = images.chunk(requests)
    with _onnx_file(network, parts[0], own_graph) as path:
        core = runtime.Core()
        given = quantised(core.read_model(path), calibration(), len(parts[0])) if int8 else path
        model = core.compile_model(given, "CPU", settings)
    waiting = [(model.create_infer_request(), part.numpy()) for part in parts]

    def call() -> Tensor:
        for request, part in waiting:
            request.start_async(part, share_inputs=True)
        for request, _ in waiting:
            request.wait()
        return torch.cat([torch.from_numpy(request.get_output_tensor().data) for request, _ in waiting])

    return NotedCall(call, f"nncf {optional('nncf').__version__}") if int8 else call


def quantised(model: Any, images: Tensor, batch: int = 1) -> Any:
    """An OpenVINO model of images in such batches, its products put into int8 by NNCF, calibrated on `images`.

    Its settings are those for transformers, and of its two presets the more accurate one. Where the CPU has no VNNI, weights
    are of 7 bits: OpenVINO multiplies by instructions that saturate there, and with 8 bits its logits are lost.
    """
    nncf = optional("nncf")
    overflow = importlib.import_module("nncf.quantization.advanced_parameters").OverflowFix
    whole = [part.numpy() for part in images.split(batch) if len(part) == batch]
    if not whole:
        raise MissingError(f"it is calibrated on {len(images)} images, less than a batch")
    return nncf.quantize(
        model,
        nncf.Dataset(whole),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(whole),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            batchwise_statistics=batch > 1,  # of each image, as in batches of one
            overflow_fix=overflow.DISABLE if has_vnni() else overflow.ENABLE,
        ),
    )


def has_vnni() -> bool:
    """Whether this CPU multiplies bytes without saturation, with AVX-512 or without."""
    info = Path("/proc/cpuinfo")
    return info.exists() and "vnni" in info.read_text()


def usual() -> torch.dtype:
    """The dtype that serves this CPU best without int8."""
    return DTYPES[machine.usual_dtypes(torch.device("cpu"))[-1]]


def calibration() -> Tensor:
    """Samples that come after those of small batches, so that these were not calibrated on."""
    return samples.load(8 + CALIBRATION)[1][8:]


def mnn(network: nn.Module, images: Tensor, dtype: torch.dtype, *, own_graph: bool = False) -> Call:
    """MNN, whose convolutions are Winograd's where it finds that faster; of this batch size.

    Its converter is called from Python: the command of the same name installs a package that reports to its maker. Its
    precision "low" is bfloat16 where the CPU has it.
    """
    runtime, converter = optional("MNN"), optional("_tools")
    with _onnx_file(network, images, own_graph) as path:
        converted = path.with_suffix(".mnn")
        converter.mnnconvert(
            ["MNNConvert", "-f", "ONNX", "--modelFile", str(path), "--MNNModel", str(converted), "--bizCode", "bench"]
        )
        settings = {
            "backend": "CPU",
            "numThread": torch.get_num_threads(),
            "precision": "normal" if dtype == torch.float32 else "low",
        }
        manager = runtime.nn.create_runtime_manager((settings,))
        module = runtime.nn.load_module_from_file(str(converted), [NAMES[0]], [NAMES[1]], runtime_manager=manager)
    given = runtime.expr.placeholder(list(images.shape), runtime.expr.NCHW)

    def call() -> Tensor:
        given.write(images.numpy())
        return torch.from_numpy(module.forward([given])[0].read().copy())

    return call


@contextlib.contextmanager
def _onnx_file(network: nn.Module, images: Tensor, own_graph: bool) -> Iterator[Path]:
    """The network as ONNX for images of this shape, while the block runs; after it, an engine needs its weights no more."""
    optional("onnxscript")  # of the exporter
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.onnx")
        if own_graph:
            with hifuse_fast.use_backend("reference"), torch.no_grad():
                torch.onnx.export(
                    network, (images,), path, dynamo=True, verbose=False, input_names=NAMES[:1], output_names=NAMES[1:]
                )
        else:
            hifuse_fast.export.to_onnx(
                network, path, batch_size=len(images), image_size=tuple(images.shape[2:]), check=False
            )  # the bench checks what the engine gives
        yield path
    for parameter in network.parameters():
        parameter.data = torch.empty(0)


def fast(network: nn.Module, images: Tensor, dtype: torch.dtype, **options: Any) -> Call:
    """The product."""
    return partial(hifuse_fast.optimize_for_inference(network, dtype=dtype, **options), images.to(dtype))


def fast_int8(network: nn.Module, images: Tensor, dtype: torch.dtype) -> Call:
    """The product in int8. Random weights have no classes to keep, so any number of them may change."""
    given = calibration()
    frozen = hifuse_fast.optimize_for_inference(network, dtype, calibration=given, most_changed=len(given))
    assert frozen.certificate is not None
    return NotedCall(partial(frozen, images), what_runs_in_int8(frozen.certificate))


def what_runs_in_int8(certificate: Certificate) -> str:
    """For the note of a row."""
    left = [part.name for part in certificate.parts if not part.int8]
    but = f", not in {', '.join(left)}" if left else ""
    return (
        f"int8 in {len(certificate.parts) - len(left)} of {len(certificate.parts)} parts, {certificate.work:.0%} of the "
        f"multiply-adds outside the mixers{but}"
    )


NAMES = ["images", "logits"]  #: of input and output in a graph

#: The engines in the order of the table.
ENGINES: dict[str, Engine] = {
    "eager": Engine(eager),
    "eager channels_last": Engine(eager_channels_last),
    "torch.compile": Engine(compiled),
    "onnxruntime": Engine(onnxruntime, "onnxruntime"),
    "openvino latency": Engine(partial(openvino, hint="LATENCY"), "openvino"),
    "openvino throughput": Engine(partial(openvino, hint="THROUGHPUT"), "openvino"),
    "mnn": Engine(mnn, "MNN"),
    "zentorch": Engine(zentorch, "zentorch"),
    "hifuse_fast": Engine(fast),
    "hifuse_fast lean": Engine(partial(fast, algorithm="direct")),
    f"openvino latency{INT8}": Engine(partial(openvino, hint="LATENCY"), "openvino"),
    f"openvino throughput{INT8}": Engine(partial(openvino, hint="THROUGHPUT"), "openvino"),
    f"hifuse_fast{INT8}": Engine(fast_int8),
}
#: The engines that are given a graph, given that of our reference.
OWN_GRAPH: dict[str, Engine] = {
    "onnxruntime": Engine(partial(onnxruntime, own_graph=True), "onnxruntime"),
    "openvino latency": Engine(partial(openvino, hint="LATENCY", own_graph=True), "openvino"),
    "openvino throughput": Engine(partial(openvino, hint="THROUGHPUT", own_graph=True), "openvino"),
    "mnn": Engine(partial(mnn, own_graph=True), "MNN"),
    f"openvino latency{INT8}": Engine(partial(openvino, hint="LATENCY", own_graph=True), "openvino"),
    f"openvino throughput{INT8}": Engine(partial(openvino, hint="THROUGHPUT", own_graph=True), "openvino"),
}


def _compile(backend: str, network: nn.Module, images: Tensor, dtype: torch.dtype) -> Call:
    settings: Any = importlib.import_module("torch._inductor.config")
    settings.freezing = settings.freezing_discard_parameters = True  # the second: no copy of the weights besides the packed one
    compiled_network: Any = torch.compile(_channels_last(network), backend=backend, dynamic=False)
    return _autocast(compiled_network, images, dtype)


def _channels_last(network: nn.Module) -> nn.Module:
    moved: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def _autocast(network: nn.Module, images: Tensor, dtype: torch.dtype) -> Call:
    """The reference on channels-last images; bfloat16 by autocast, faster here and more accurate than weights cast to it."""
    forward = backend_engine("reference")(network)
    images = images.to(memory_format=torch.channels_last)

    def call() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            return forward(images)

    return call


def _share(batch: int, threads: int) -> int:
    """The most requests that share `batch` evenly with a thread for each."""
    return next(count for count in range(min(batch, threads), 0, -1) if batch % count == 0)
