"""OptimizedHiFuse: the network over prepared ops, and what a call of it is; its stages are in stages.py."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from hifuse_fast.backends import transforms
from hifuse_fast.backends.cuda import ends as cuda
from hifuse_fast.backends.cuda.launch import DEPENDENT_LAUNCHES, begin_early, counted_together
from hifuse_fast.backends.native.threads import own_threads
from hifuse_fast.backends.select import BackendError, traced_for_others
from hifuse_fast.backends.tape import Tape, call, recorded
from hifuse_fast.backends.tracing import exported_for_every_size, trace_for_every_size
from hifuse_fast.checkpoints.read import RECORD
from hifuse_fast.checkpoints.save import write_safetensors
from hifuse_fast.checks import check_images
from hifuse_fast.inference import fold
from hifuse_fast.inference.buffers import FreshMaps, MapPool, Maps, Passage, is_traced
from hifuse_fast.inference.calls import BACKEND, CALLS, DERIVED, list_calls
from hifuse_fast.inference.certificate import Certificate
from hifuse_fast.inference.configuration import CERTIFICATE, DTYPES, FORMAT, MEMORY_FORMATS, VERSION, Configuration, Settings
from hifuse_fast.inference.graphs import Graphs, capture
from hifuse_fast.inference.stages import Maker, Stage
from hifuse_fast.inference.watch import Watch
from hifuse_fast.model import STRIDE
from hifuse_fast.ops.functions.padding import next_multiple, pad_to_multiple
from hifuse_fast.ops.prepared.base import PreparedOp
from hifuse_fast.options import STAGES, HiFuseOptions

#: Backends of which C can make every call. Their stems take images of any size, in float32 too.
LISTED = ("native", "cuda")


class OptimizedHiFuse(nn.Module):
    """HiFuse frozen for inference: `optimize_for_inference` makes it, `load_optimized` reads it from a file.

    The forward takes images [B, in_chans, H, W] of any H, W >= 1, of any strides, of float32 or the network's dtype, to which
    they are cast once. It returns logits [B, num_classes], or without classifier the features [B, C4], or made of a
    `HiFuseFeatures` the list of its maps; all in the network's dtype. A size that is no multiple of 32 is zero-padded at the
    right and the bottom to the next one. There is no autograd: images that require a gradient are refused while gradients are
    on, and so are the transforms of torch.func. Calls from several threads at once are safe; a result never shares memory with
    the maps that are reused from call to call.

    On a CPU, calls of a shape that was there before repeat the same calls of the compiled library on the same memory, without
    passing through the modules. On a GPU, from the second call of a shape on, it replays a CUDA graph of that shape, and keeps
    those of the last few shapes with their memory; `optimize_for_inference(cuda_graphs=False)` is without. Calls of one shape
    then take turns. Where a module of it was replaced or has a hook, each call passes through all modules, and is slower.

    torch.export and torch.compile(fullgraph=True) take it on a CPU; torch.jit does not. A call that is traced goes through the
    modules, on fresh maps, and gives the same bits.

    Its `record` is that of the model, see `HiFuse`. Its `certificate` says what int8 has proven; it is None where nothing is in
    int8. The state_dict is empty: `save` writes the network. Neither its dtype nor its device can be changed. Nothing that is
    done to the model that it was made of changes it.
    """

    def __init__(self, configuration: Configuration, make: Maker, record: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        c = self.configuration = configuration
        self.record = dict(record or {})
        self.certificate: Certificate | None = None
        self.num_classes = c.num_classes
        setting = Settings(c)
        eps = setting("downsample_layers.0.1.eps", fold.EPS), setting("patch_embed.norm.eps", fold.GLOBAL_EPS)
        self.stem = make("stem", fold.stem, eps=eps)
        self.stages = nn.ModuleList(Stage(c, make, setting, i) for i in range(STAGES))
        self.head: PreparedOp | None = None
        if c.out_indices is None:
            folding = fold.head if c.num_classes else fold.head_norm
            # "direct": of few rows, it waits for its weights, and Strassen's are more.
            self.head = make("linear", folding, norm="row", eps=setting("conv_norm.eps", fold.EPS), algorithm="direct")
        setting.check_all_were_asked_for()
        self.dtype, self.device = DTYPES[c.dtype], next(self.buffers()).device
        self._made = make.made
        # Whose calls alone lead from the images to the result. Those of "native" are kept on a tape, on threads of their own.
        backends = {op.backend for op in make.made.values()}
        self._library = next(iter(backends)) if len(backends) == 1 and c.out_indices is None else None
        self._replayed, self._counts = self._library == "native", "cuda" in backends
        self._pool = MapPool(self.dtype, self.device)
        self._graphs = Graphs(capture) if c.cuda_graphs and self.device.type == "cuda" else None
        self.eval()
        self._watch = Watch(self)

    @property
    def options(self) -> HiFuseOptions:
        """The options of the model that it was made of, as `HiFuse.options`."""
        return self.configuration

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Logits, features or maps of images; see the class.

        Raises:
            TypeError, ValueError: images that do not fit, said in the message.
            RuntimeError: images that require a gradient while gradients are on; a transform of torch.func; torch.jit.trace;
                torch.onnx.export of a network on kernels.
            BackendError: torch.export of a network on Triton, which is not served yet.
        """
        _check_context()
        self._check_images(images)
        return self._traced(images) if is_traced(images) else self._called(images)

    @torch.no_grad()
    def _called(self, images: Tensor) -> Tensor | list[Tensor]:
        if self._watch.sees_a_change():
            with torch.autocast(self.device.type, enabled=False):
                return self._run(self._prepare(images), FreshMaps(self.dtype, self.device))
        if self._graphs is None or torch.cuda.is_current_stream_capturing():  # into a graph of the caller
            return self._eager(images)
        result: Tensor | list[Tensor] = self._graphs(self._eager, images)
        return result

    def _eager(self, images: Tensor) -> Tensor | list[Tensor]:
        if self._library not in LISTED:
            images = self._prepare(images)
        batch, height, width = images.shape[0], *_padded(images)
        with torch.autocast(self.device.type, enabled=False), self._lent(), self._pool.lend(batch, height, width) as maps:
            return self._run(images, maps)

    def _lent(self) -> contextlib.AbstractContextManager[None]:
        """What all kernels of a call use: threads of the library, or counters on a GPU."""
        if self._replayed:
            return own_threads()
        if self._counts:
            return counted_together(self.device)
        return contextlib.nullcontext()

    def _prepare(self, images: Tensor) -> Tensor:
        """The images in the network's dtype, padded to whole strides. The stems of `LISTED` do that as they read them."""
        return pad_to_multiple(images.to(self.dtype).permute(0, 2, 3, 1), STRIDE).permute(0, 3, 1, 2)

    def _run(self, images: Tensor, maps: Maps) -> Tensor | list[Tensor]:
        """The result, in no memory that goes back to `maps`."""
        if maps.passage is not None:
            self.stem(images, out=maps.passage.first)
            maps.passage.tape.replay()
            return self._logits(maps.passage.last)
        first = self._first(images, maps)
        self.stem(images, out=first)
        with recorded() as tape:
            last, kept = self._through(*first, maps)
        if self._replayed:
            maps.passage = Passage(tape, first, last)
        return kept if self.head is None else self._logits(last)

    def _traced(self, images: Tensor) -> Tensor | list[Tensor]:
        """The same for a call that is traced: on fresh maps, and nothing is kept for the next call.

        What would switch gradients or autocast off where they are off is left out: each is a subgraph in an exported program.
        """
        trace_for_every_size(images)
        backends = {op.backend for op in self._made.values()} if torch.compiler.is_exporting() else set()
        if backends - {"reference"} and traced_for_others():
            raise RuntimeError(f"torch.onnx.export cannot take a frozen network, whose ops ONNX has not: {_NO_ONNX}")
        if "triton" in backends:
            # A launch that writes to a given map is no operator: it would be missing in the program.
            raise BackendError("backend 'triton' cannot serve torch.export: freeze the network with 'native' or 'reference'")
        maps, kind = FreshMaps(self.dtype, self.device), self.device.type
        with (
            exported_for_every_size() if torch.compiler.is_exporting() else contextlib.nullcontext(),
            torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext(),
        ):
            images = self._prepare(images.detach())
            local_map, global_map = self.stem(images, out=self._first(images, maps))
            last, kept = self._through(local_map, global_map, maps)
            return kept if self.head is None else self._logits(last)

    def _first(self, images: Tensor, maps: Maps) -> tuple[Tensor, Tensor]:
        """The maps that the stem writes to."""
        height, width = _padded(images)
        shape = (images.shape[0], height // 4, width // 4, self.configuration.dims[0])
        return maps.take(*shape), maps.take(*shape)

    def _through(
        self, local_map: Tensor, global_map: Tensor, maps: Maps, fused_map: Any = None, first: int = 0
    ) -> tuple[Tensor, list[Tensor]]:
        """The last fused map, which is valid as long as `maps` are not lent again, and copies of those that are returned.

        `fused_map`: None before the first stage; `first`: the stage that the maps are given to.
        """
        c = self.configuration
        kept = {}
        for i, stage in enumerate(self.stages[first:], first):
            local_map, global_map, fused_map = stage(local_map, global_map, fused_map, maps)
            if c.out_indices is not None and i in c.out_indices:
                kept[i] = fused_map.permute(0, 3, 1, 2).clone(memory_format=MEMORY_FORMATS[c.memory_format])
        maps.give(local_map, global_map, fused_map)
        return fused_map, [kept[i] for i in c.out_indices or ()]

    def _logits(self, fused_map: Tensor) -> Tensor:
        assert self.head is not None
        logits: Tensor = self.head(_mean(fused_map, self.dtype, self._library)).flatten(1)
        return logits

    @torch.no_grad()
    def _resumed(self, first: int, local_map: Tensor, global_map: Tensor, fused_map: Tensor | None) -> Tensor:
        """The logits from the maps on that the stage `first` is given, which are written to."""
        with torch.autocast(self.device.type, enabled=False), self._lent():
            maps = FreshMaps(self.dtype, self.device)
            return self._logits(self._through(local_map, global_map, maps, fused_map, first)[0])

    @torch.no_grad()
    def _calls(self, images: Tensor) -> Tape:
        """The calls for images of this shape, on the meta device, from the stem to the result. None is made."""
        maps = Maps(self.dtype, images.device)
        with recorded(made=False) as tape:
            first = self._first(images, maps)
            self.stem(images, out=first)
            self._logits(self._through(*first, maps)[0])
        return tape

    def forget_maps(self) -> None:
        """Give back the memory that is kept for calls of the shapes so far."""
        self._pool = MapPool(self.dtype, self.device)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network as it is, packed, as safetensors; `load_optimized` reads it without folding or packing.

        The file appears whole or not at all. It serves every instruction set, by the backends that this network runs on. The
        `record` of the model, with the names of its classes, goes with it. Where all ops are "native", or all "cuda", and the
        result is no map, the file carries its list of calls too, by which C runs it (docs/c.md).

        Raises:
            ValueError: `path` does not end in .safetensors; a module of the network was replaced, or has a hook.
        """
        if self._watch.sees_a_change():
            raise ValueError(
                "the network cannot be saved, because a module of it was replaced or has a hook, which no file holds"
            )
        tensors: dict[str, Tensor] = {}
        entries = {}
        for name, op in self._made.items():
            packed = op.packed()
            tensors |= {f"{name}.{key}": tensor for key, tensor in packed.items()}
            entries[name] = {"backend": op.backend, "options": op.options, "tensors": list(packed)}
        metadata = {"configuration": json.dumps(self.configuration.to_dict()), "ops": json.dumps(entries)}
        if self.record:
            metadata[RECORD] = json.dumps(self.record)
        if self._library in LISTED:
            tensors |= self._derived()
            metadata[CALLS] = json.dumps(list_calls(self._calls, tensors))
            metadata[BACKEND] = self._library
        if self._library == "cuda":
            metadata[DEPENDENT_LAUNCHES] = json.dumps(begin_early(self.device))
        if self.certificate is not None:
            metadata[CERTIFICATE] = json.dumps(self.certificate.to_dict())
        write_safetensors(tensors, path, {"format": FORMAT, "version": VERSION, **metadata})

    def _derived(self) -> dict[str, Tensor]:
        """The tensors of ops that were made of others of this network, as a block in one launch: C does not make them."""
        made = {id(op) for op in self._made.values()}
        others = {name: op for name, op in self.named_modules() if isinstance(op, PreparedOp) and id(op) not in made}
        return {f"{DERIVED}{name}.{key}": tensor for name, op in others.items() for key, tensor in op.packed().items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OptimizedHiFuse:
        """As of any module. But what asks for the dtype that the network has leaves the tensors that are of another one."""
        like = torch.empty((1, 1, 1, 1), dtype=self.dtype, device=self.device)
        if fn(like).dtype == self.dtype:
            cast, fn = fn, lambda tensor: moved if (moved := cast(tensor)).dtype == tensor.dtype else tensor
        super()._apply(fn, recurse)
        return self

    def __prepare_scriptable__(self) -> None:
        """Asked by torch.jit.script."""
        raise RuntimeError(f"torch.jit.script cannot take a frozen network: {_NO_JIT}")

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in asdict(self.configuration).items())

    def _check_images(self, images: Tensor) -> None:
        check_images(images, self.configuration.in_chans)
        if images.dtype not in (torch.float32, self.dtype):
            raise TypeError(f"images must be torch.float32 or the network's {self.dtype}, got {images.dtype}")
        if images.device != self.device:
            raise ValueError(f"images must be on the network's device, {self.device}, got {images.device}")
        if images.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"images require a gradient, and the frozen network has none: {_NO_AUTOGRAD};"
                " where no gradient is wanted, call it under torch.no_grad()"
            )


_NO_JIT = "torch.export.export takes it, and its own save and load_optimized write and read it"
_NO_ONNX = "hifuse_fast.export.to_onnx writes the model that it was made of"
_NO_AUTOGRAD = "it runs forward only: use the model that it was made of"


def _padded(images: Tensor) -> tuple[int, int]:
    """Height and width of the images, up to whole strides."""
    return next_multiple(images.shape[2], STRIDE), next_multiple(images.shape[3], STRIDE)


def _mean(fused_map: Tensor, dtype: torch.dtype, library: str | None) -> Tensor:
    """The mean over the pixels of a map, [B, 1, 1, C] in `dtype`.

    PyTorch's order of a sum depends on the threads. In float64, sums of float32 are exact as a rule, in any order.
    """
    if library == "cuda":
        return cuda.mean(fused_map.to(dtype))  # as it is, unless a module was replaced
    if library != "native":
        return fused_map.mean((1, 2), keepdim=True, dtype=torch.float64).to(dtype)
    x = fused_map.to(dtype).contiguous()  # as it is, unless a module was replaced
    mean = x.new_empty((x.shape[0], 1, 1, x.shape[3]))
    call(torch.ops.hifuse_fast.mean_out.default, x, mean)
    return mean


def _check_context() -> None:
    """Raise RuntimeError where the result would have no tangent or no batches, or be kept for one size, without a word."""
    transform = transforms.active()
    if transform is not None:
        raise RuntimeError(f"the frozen network was called under {transform}, and {_NO_AUTOGRAD}")
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        raise RuntimeError(f"torch.jit.trace cannot take a frozen network: {_NO_JIT}")
