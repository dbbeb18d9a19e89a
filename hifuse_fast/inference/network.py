"""OptimizedHiFuse: the network over prepared ops, described once, over a maker.

A maker is called with an op, the function of `fold` that gives its tensors, and the name of the official module that they come
from. One folds and packs the weights of a model, another takes packed tensors out of a file (make.py).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hifuse_fast.backends.native.tape import recorded
from hifuse_fast.backends.select import BackendError
from hifuse_fast.checkpoints.kinds import FROZEN
from hifuse_fast.checkpoints.save import write_safetensors
from hifuse_fast.checks import check_choice, check_flag
from hifuse_fast.inference import fold
from hifuse_fast.inference.buffers import FreshMaps, MapPool, Maps, Passage, is_traced
from hifuse_fast.inference.graphs import Graphs, capture
from hifuse_fast.layers import pad_to_multiple
from hifuse_fast.model import STRIDE, check_out_indices
from hifuse_fast.ops.prepared.base import PreparedOp
from hifuse_fast.options import STAGES, HiFuseOptions

FORMAT, VERSION = FROZEN, "4"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
ALGORITHMS = ("auto", "direct")
MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous_format": torch.contiguous_format}


@dataclass(frozen=True, kw_only=True)
class Configuration(HiFuseOptions):
    """What a frozen network is, but for its weights: the options of its model, and how it was frozen. In a file, JSON."""

    algorithm: str  # that was asked for; the options of an op say which it has
    dtype: str
    memory_format: str
    out_indices: tuple[int, ...] | None  # of a network that returns maps
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("algorithm", self.algorithm, ALGORITHMS)
        check_choice("dtype", self.dtype, tuple(DTYPES))
        check_choice("memory_format", self.memory_format, tuple(MEMORY_FORMATS))
        check_flag("cuda_graphs", self.cuda_graphs)
        if self.out_indices is not None:
            object.__setattr__(self, "out_indices", tuple(check_out_indices(self.out_indices)))


class Maker(Protocol):
    """Makes the ops of a network, and keeps them by name."""

    made: dict[str, PreparedOp]

    def __call__(
        self, op: str, folding: Callable[[fold.Weights, str], fold.Folded], module: str = "", **options: Any
    ) -> PreparedOp: ...


class OptimizedHiFuse(nn.Module):
    """HiFuse frozen for inference: `optimize_for_inference` makes it, `load_optimized` reads it from a file.

    The forward takes images [B, in_chans, H, W] of any H, W >= 1, of any strides, of float32 or the network's dtype, to which
    they are cast once. It returns logits [B, num_classes], or without classifier the features [B, C4], or made of a
    `HiFuseFeatures` the list of its maps; all in the network's dtype. A size that is no multiple of 32 is zero-padded at the
    right and the bottom to the next one. There is no autograd. Calls from several threads at once are safe; a result never
    shares memory with the maps that are reused from call to call.

    On a CPU, calls of a shape that was there before repeat the same calls of the compiled library on the same memory, without
    passing through the modules, whose hooks are not called then. On a GPU, from the second call of a shape on, it replays a
    CUDA graph of that shape, and keeps those of the last few shapes with their memory; `optimize_for_inference(
    cuda_graphs=False)` is without. Calls of one shape then take turns.

    torch.export and torch.compile(fullgraph=True) take it on a CPU. A call that is traced goes through the modules, on fresh
    maps, and gives the same bits.

    The state_dict is empty: `save` writes the network. Neither its dtype nor its device can be changed.
    """

    def __init__(self, configuration: Configuration, make: Maker) -> None:
        super().__init__()
        c = self.configuration = configuration
        self.num_classes = c.num_classes
        self.stem = make("stem", fold.stem, eps=(fold.EPS, fold.GLOBAL_EPS))
        self.stages = nn.ModuleList(Stage(c, make, i) for i in range(STAGES))
        self.head: PreparedOp | None = None
        if c.out_indices is None:
            folding = fold.head if c.num_classes else fold.head_norm
            # "direct": of few rows, it waits for its weights, and Strassen's are more.
            self.head = make("linear", folding, norm="row", eps=fold.EPS, algorithm="direct")
        self.dtype, self.device = DTYPES[c.dtype], next(self.buffers()).device
        self._made = make.made
        # On a tape are calls of the compiled library alone.
        self._replayed = c.out_indices is None and all(op.backend == "native" for op in make.made.values())
        self._pool = MapPool(self.dtype, self.device)
        self._graphs = Graphs(capture) if c.cuda_graphs and self.device.type == "cuda" else None
        self.eval()

    @property
    def options(self) -> HiFuseOptions:
        """The options of the model that it was made of, as `HiFuse.options`."""
        return self.configuration

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Logits, features or maps of images; see the class.

        Raises:
            TypeError, ValueError: images that do not fit, said in the message.
            BackendError: torch.export of a network on Triton, which is not served yet.
        """
        self._check_images(images)
        return self._traced(images) if is_traced(images) else self._called(images)

    @torch.no_grad()
    def _called(self, images: Tensor) -> Tensor | list[Tensor]:
        if self._graphs is None or torch.cuda.is_current_stream_capturing():  # into a graph of the caller
            return self._eager(images)
        result: Tensor | list[Tensor] = self._graphs(self._eager, images)
        return result

    def _eager(self, images: Tensor) -> Tensor | list[Tensor]:
        images = self._prepare(images)
        batch, _, height, width = images.shape
        with torch.autocast(self.device.type, enabled=False), self._pool.lend(batch, height, width) as maps:
            return self._run(images, maps)

    def _prepare(self, images: Tensor) -> Tensor:
        """The images in the network's dtype, padded to whole strides."""
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
        if torch.compiler.is_exporting() and any(op.backend == "triton" for op in self._made.values()):
            # A launch that writes to a given map is no operator: it would be missing in the program.
            raise BackendError("backend 'triton' cannot serve torch.export: freeze the network with 'native' or 'reference'")
        images, maps = self._prepare(images.detach()), FreshMaps(self.dtype, self.device)
        kind = self.device.type
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext():
            local_map, global_map = self.stem(images, out=self._first(images, maps))
            last, kept = self._through(local_map, global_map, maps)
            return kept if self.head is None else self._logits(last)

    def _first(self, images: Tensor, maps: Maps) -> tuple[Tensor, Tensor]:
        """The maps that the stem writes to."""
        shape = (images.shape[0], images.shape[2] // 4, images.shape[3] // 4, self.configuration.dims[0])
        return maps.take(*shape), maps.take(*shape)

    def _through(self, local_map: Tensor, global_map: Tensor, maps: Maps) -> tuple[Tensor, list[Tensor]]:
        """The last fused map, which is valid as long as `maps` are not lent again, and copies of those that are returned."""
        c = self.configuration
        fused_map: Any = None  # before the first stage
        kept = {}
        for i, stage in enumerate(self.stages):
            local_map, global_map, fused_map = stage(local_map, global_map, fused_map, maps)
            if c.out_indices is not None and i in c.out_indices:
                kept[i] = fused_map.permute(0, 3, 1, 2).clone(memory_format=MEMORY_FORMATS[c.memory_format])
        maps.give(local_map, global_map, fused_map)
        return fused_map, [kept[i] for i in c.out_indices or ()]

    def _logits(self, fused_map: Tensor) -> Tensor:
        assert self.head is not None
        logits: Tensor = self.head(fused_map.mean((1, 2), keepdim=True)).flatten(1)
        return logits

    def forget_maps(self) -> None:
        """Give back the memory that is kept for calls of the shapes so far."""
        self._pool = MapPool(self.dtype, self.device)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network as it is, packed, as safetensors; `load_optimized` reads it without folding or packing.

        The file appears whole or not at all. It serves every instruction set, by the backends that this network runs on.

        Raises:
            ValueError: `path` does not end in .safetensors.
        """
        tensors: dict[str, Tensor] = {}
        entries = {}
        for name, op in self._made.items():
            packed = op.packed()
            tensors |= {f"{name}.{key}": tensor for key, tensor in packed.items()}
            entries[name] = {"backend": op.backend, "options": op.options, "tensors": list(packed)}
        metadata = {"configuration": json.dumps(self.configuration.to_dict()), "ops": json.dumps(entries)}
        write_safetensors(tensors, path, {"format": FORMAT, "version": VERSION, **metadata})

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in asdict(self.configuration).items())

    def _check_images(self, images: Tensor) -> None:
        in_chans = self.configuration.in_chans
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
        if images.dim() != 4 or images.shape[1] != in_chans or 0 in images.shape[2:]:
            shape = list(images.shape)
            raise ValueError(f"images must be [B, {in_chans}, H, W] with H and W at least 1, got {shape}")
        if images.dtype not in (torch.float32, self.dtype):
            raise TypeError(f"images must be torch.float32 or the network's {self.dtype}, got {images.dtype}")
        if images.device != self.device:
            raise ValueError(f"images must be on the network's device, {self.device}, got {images.device}")


class Stage(nn.Module):
    """One stage of all three branches: it takes over the maps of the stage before, and returns its own."""

    def __init__(self, c: Configuration, make: Maker, i: int) -> None:
        super().__init__()
        self.dim = c.dims[i]
        self.downsample: PreparedOp | None = None
        self.merge: PreparedOp | None = None
        if i:
            patches = {"op": "linear", "rows": "patches", "algorithm": c.algorithm}
            self.downsample = make(
                folding=fold.downsample, module=f"downsample_layers.{i}", norm="pixel", eps=fold.EPS, **patches
            )
            self.merge = make(
                folding=fold.merge, module=f"layers{i + 1}.downsample", norm="row", eps=fold.GLOBAL_EPS, **patches
            )
        self.local_blocks = nn.ModuleList(
            make("local_block", fold.local_block, f"stages.{i}.{j}", eps=fold.EPS) for j in range(c.conv_depths[i])
        )
        self.global_blocks = nn.ModuleList(
            GlobalBlock(
                make,
                f"layers{i + 1}.blocks.{j}",
                c.algorithm,
                num_heads=c.num_heads[i],
                head_dim=c.dims[i] // c.num_heads[i],
                window_size=c.window_size,
                shift_size=(j % 2) * (c.window_size // 2),
            )
            for j in range(c.depths[i])
        )
        self.fusion = Fusion(c, make, f"fu{i + 1}", first=i == 0)

    def forward(
        self, local_map: Tensor, global_map: Tensor, fused_map: Tensor | None, maps: Maps
    ) -> tuple[Tensor, Tensor, Tensor]:
        local_map = self._halve(self.downsample, local_map, maps)
        for block in self.local_blocks:
            local_map = _replace(block, local_map, maps)
        global_map = self._halve(self.merge, global_map, maps)
        for block in self.global_blocks:
            global_map = block(global_map, maps)
        return local_map, global_map, self.fusion(local_map, global_map, fused_map, maps)

    def _halve(self, op: PreparedOp | None, x: Tensor, maps: Maps) -> Tensor:
        if op is None:
            return x
        out: Tensor = op(x, out=maps.take(x.shape[0], x.shape[1] // 2, x.shape[2] // 2, self.dim))
        maps.give(x)
        return out


class GlobalBlock(nn.Module):
    """See `hifuse_fast.blocks.GlobalBlock`."""

    def __init__(self, make: Maker, module: str, algorithm: str, **attention: Any) -> None:
        super().__init__()
        self.qkv = make("linear", fold.qkv, module, norm="row", eps=fold.GLOBAL_EPS, algorithm=algorithm)
        self.attention = make("window_attention", fold.attention, module, **attention)
        self.output = make("linear", fold.output, module, activation="gelu", algorithm=algorithm)

    def forward(self, x: Tensor, maps: Maps) -> Tensor:
        qkv = self.qkv(x, out=maps.take(*x.shape[:3], 3 * x.shape[3]))
        attended = self.attention(qkv, out=maps.take(*x.shape))
        maps.give(qkv)
        out: Tensor = self.output(attended, residual=x, out=maps.take(*x.shape))
        maps.give(x, attended)
        return out


class Fusion(nn.Module):
    """See `hifuse_fast.blocks.HFFBlock`. Takes over the fused map, and only reads the others."""

    def __init__(self, c: Configuration, make: Maker, module: str, first: bool) -> None:
        super().__init__()
        algorithm = {"algorithm": c.algorithm}
        self.local_linear = make("linear", fold.conv_norm, f"{module}.W_l", **algorithm)
        self.global_linear = make("linear", fold.conv_norm, f"{module}.W_g", **algorithm)
        self.up: PreparedOp | None = None
        if not first:
            self.up = make("linear", fold.conv_norm, f"{module}.Updim", activation="relu", pool=True, **algorithm)
        folding = fold.first_fusion if first else fold.fusion
        self.fuse = make("linear", folding, module, norm="row", eps=fold.EPS, activation="gelu", **algorithm)
        self.gated_concat = make(
            "gated_concat", fold.gated_concat, module, double_sigmoid=c.channel_gate == "double_sigmoid", eps=fold.EPS
        )
        self.mixer = make("mixer", fold.mixer, module, **algorithm)
        self.mlp = make("mlp", fold.mlp, module, **algorithm)

    def forward(self, local_map: Tensor, global_map: Tensor, fused_map: Tensor | None, maps: Maps) -> Tensor:
        shape = local_map.shape
        inputs = [
            self.local_linear(local_map, out=maps.take(*shape)),
            self.global_linear(global_map, out=maps.take(*shape)),
        ]
        w_f = None
        if self.up is not None and fused_map is not None:
            w_f = self.up(fused_map, out=maps.take(*shape))
            maps.give(fused_map)
            inputs.insert(0, w_f)
        x = self.fuse(*inputs, out=maps.take(*shape))
        maps.give(*inputs[-2:])
        z = self.gated_concat(local_map, global_map, x, out=maps.take(*shape[:3], 3 * shape[3]))
        maps.give(x)
        u = _replace(self.mixer, z, maps)
        out: Tensor = self.mlp(u, residual=w_f, out=maps.take(*shape))
        maps.give(u, *inputs[:-2])
        return out


def _replace(op: nn.Module, x: Tensor, maps: Maps) -> Tensor:
    """op(x) in a map of the same shape; x goes back."""
    out: Tensor = op(x, out=maps.take(*x.shape))
    maps.give(x)
    return out
