"""Calls of more than one op: blocks that one kernel may stand for, and the whole frozen network. Needs no Triton.

A whole block is measured against its parts, and how launches follow one another in nothing smaller than the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hifuse_fast import ops
from hifuse_fast.backends import tables
from hifuse_fast.inference import OptimizedHiFuse, optimize_for_inference
from hifuse_fast.inference.buffers import FreshMaps
from hifuse_fast.model import create_model
from hifuse_fast.ops.prepared.fuse_path import backend_of_fuse_path, prepare_fuse_path
from hifuse_fast.ops.prepared.global_block import backend_of_global_block, prepare_global_block
from hifuse_fast.testing import golden_weights
from hifuse_fast.tuning.calls import STAGES, WINDOW, Call, PreparedCall
from hifuse_fast.tuning.frozen_calls import CLASSES, IN_CHANS, frozen_calls, network_calls

SIDE = 224
NETWORK_SWITCHES = ("dependent_launches", "products")  #: sections that nothing smaller than the network decides


@dataclass(frozen=True)
class BlockCall(PreparedCall):
    """One call of a module that consists of prepared ops; their parameters have the names of the parts before them.

    "auto" asks whether all of it is best done by one backend. Its rival, where the tuner asks for the "reference", are the
    parts, each by the backend that its own table says.
    """

    parts: Mapping[str, PreparedCall] = field(default_factory=dict)

    def rival(self, backend: str) -> str:
        return "parts" if backend == "reference" else backend

    def bind(self, inputs: Mapping[str, Tensor], grad: Tensor | None, backend: str) -> Callable[[], list[Tensor]]:
        """The block on these maps, to be called again and again; its parts by `backend`, or by that of each for "parts"."""
        maps = [inputs[name] for name in self.maps]
        like = maps[0]
        if backend == "auto":
            backend = self._backend(like)
        made = {
            name: getattr(ops, part.op)(
                **{key: inputs[f"{name}.{key}"] for key in part.parameters},
                **part.options, dtype=like.dtype, backend="auto" if backend == "parts" else backend,
            )
            for name, part in self.parts.items()
        }  # fmt: skip
        block, fresh = self._block(made), FreshMaps(like.dtype, like.device)
        fused = [None] if len(maps) == 2 else []  # a path of the first stage has none

        def call() -> list[Tensor]:
            out = block(*maps, *fused, fresh)
            return [x for x in out if x is not None] if isinstance(out, tuple) else [out]

        return call

    def _backend(self, like: Tensor) -> str:
        kind: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        if self.op == "prepare_global_block":
            sizes = {name: self.parts["attention"].options[name] for name in ("num_heads", "head_dim", "window_size")}
            return backend_of_global_block("auto", **sizes, **kind)
        return backend_of_fuse_path("auto", channels=like.shape[3], first=len(self.maps) == 2, **kind)

    def _block(self, parts: dict[str, Any]) -> nn.Module:
        if self.op == "prepare_global_block":
            return prepare_global_block(**parts)
        return prepare_fuse_path(**{"up": None, **parts})


@cache
def block_calls() -> tuple[BlockCall, ...]:
    """A global block and a fuse path of each stage."""
    return tuple(make(stage) for stage in STAGES for make in (_global_block, _fuse_path))


def _global_block(stage: int) -> BlockCall:
    side, channels, _ = STAGES[stage]
    part = _parts_of(stage)
    parts = {"qkv": part["to qkv"], "attention": part[f"shift {WINDOW // 2}"], "output": part["output"]}
    return _block_call("prepare_global_block", "global", stage, {"x": (side, side, channels)}, parts)


def _fuse_path(stage: int) -> BlockCall:
    side, channels, _ = STAGES[stage]
    part, x = _parts_of(stage), (side, side, channels)
    maps = {"local_map": x, "global_map": x}
    parts = {"local_linear": part["branch"], "global_linear": part["branch"], "fuse": part["fuse"]}
    if "up" in part:
        maps["fused_map"], parts["up"] = part["up"].maps["x"], part["up"]
    return _block_call("prepare_fuse_path", "path", stage, maps, parts)


def _parts_of(stage: int) -> dict[str, Any]:
    return {call.part: call for call in frozen_calls() if call.stage == stage}


def _block_call(
    op: str, name: str, stage: int, maps: Mapping[str, tuple[int, int, int]], parts: Mapping[str, PreparedCall]
) -> BlockCall:
    side, channels, _ = STAGES[stage]
    parameters = {f"{of}.{key}": shape for of, part in parts.items() for key, shape in part.parameters.items()}
    flop = sum(part.flop_per_image for part in parts.values())
    return BlockCall(op, name, stage, maps, parameters, (side, side, channels), flop, parts=parts)


@dataclass(frozen=True)
class NetworkCall(PreparedCall):
    """A call of the frozen network on "cuda", for what its launches look up one by one."""

    batches: ClassVar[tuple[int, ...] | None] = (32, 1)

    def has_kernels(self, backend: str) -> bool:
        return backend == self.only

    def bind(self, inputs: Mapping[str, Tensor], grad: Tensor | None, backend: str) -> Callable[[], list[Tensor]]:
        """The network on images, to be called again and again. On the meta device a call looks up, and does nothing."""
        images = inputs["images"].permute(0, 3, 1, 2)
        if images.is_meta:
            return _looked_up
        network = frozen(self.part, images.dtype, images.device, backend)
        return lambda: [network(images)]


def _looked_up() -> list[Tensor]:
    for section in NETWORK_SWITCHES:
        tables.lookup(section, "*", tables.DEFAULT_ARCHITECTURE, {})
    return []


@lru_cache(maxsize=1)  # the switches are looked up by calls, and change nothing of what was packed
def frozen(model: str, dtype: torch.dtype, device: torch.device, backend: str) -> OptimizedHiFuse:
    """The network, with the golden weights, without CUDA graphs of its own."""
    made = create_model(model, CLASSES).eval()
    golden_weights(made)
    return optimize_for_inference(made.to(device), dtype, backend=backend, cuda_graphs=False)


@cache
def tuned_calls() -> tuple[Call, ...]:
    """Every call that something is decided by."""
    images, out = {"images": (SIDE, SIDE, IN_CHANS)}, (1, 1, CLASSES)
    network = NetworkCall("network", "hifuse_small", 1, images, {}, out, 0.0, only="cuda")
    return (*network_calls(), *block_calls(), network)
