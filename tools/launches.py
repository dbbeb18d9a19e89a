"""The kernels that one call of the frozen network launches, part by part. It is read from shapes: nothing runs, without a GPU.

    python -m tools.launches [--batch 1] [--model hifuse_small]

The network stands on the meta device, its kernels and the library's on record as if on an H200, with the tables of sm_90. An
operator of the library counts as one kernel; it may be more, as where a product is cut along its depth. A view and an empty
tensor are none. One image is bound by their number: each costs a launch, which a CUDA graph makes cheaper and does not remove.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import click
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hifuse_fast import create_model, list_models, ops
from hifuse_fast.backends import select
from hifuse_fast.backends.cuda import library
from hifuse_fast.backends.cuda.launch import OF_A_LARGE_GPU
from hifuse_fast.backends.cuda.launch import Launch as CudaLaunch
from hifuse_fast.backends.record import Record, recording
from hifuse_fast.bench.table import console
from hifuse_fast.inference.buffers import FreshMaps
from hifuse_fast.inference.configuration import Configuration
from hifuse_fast.inference.network import LISTED, OptimizedHiFuse
from hifuse_fast.inference.shapes import plain_shapes
from hifuse_fast.ops.prepared.base import PreparedOp
from hifuse_fast.ops.prepared.linear.cuda import Linear
from hifuse_fast.tuning.report import show

BACKENDS = ("triton", "cuda")
ARCHITECTURE, SIZE, NUM_CLASSES = "sm_90", 224, 1000
REST = "the network itself"
#: Operators of the library that launch nothing, beside views.
FREE = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh", "_unsafe_view",
    "promote_types",
}  # fmt: skip
SHARE = 256  #: pixels that a block of CUDA's `max_mean` takes of an image; where there are more, another kernel merges
COLUMNS = ("part", "calls", "kernels a call", "in all", "which")


@dataclass(frozen=True)
class LibraryCall:
    """An operator of PyTorch."""

    name: str


class _Library(TorchDispatchMode):
    """Keeps PyTorch's operators on the record, in their place among the launches of kernels."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self._record = record

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and not func.is_view and name not in FREE:
            self._record.launches.append(LibraryCall(name))
        out = func(*args, **(kwargs or {}))
        # Of maps in channels-last memory cuDNN's are so too, those of the meta device are not, and would have to be copied.
        return out.contiguous(memory_format=torch.channels_last) if name == "convolution" else out


class _Shapes:
    """Makes the ops of a network of weights without values."""

    def __init__(self, configuration: Configuration, dtype: torch.dtype, backend: str) -> None:
        self.made: dict[str, PreparedOp] = {}
        self._configuration, self._named = configuration, {"dtype": dtype, "backend": backend}

    def __call__(self, op: str, folding: Callable[..., Any], module: str = "", **options: Any) -> PreparedOp:
        shapes, options = plain_shapes(self._configuration, folding.__name__, module), {**self._named, **options}
        weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        prepared: PreparedOp = getattr(ops, f"prepare_{op}")(**weights, **options)
        # As the network's own: without the checks of a user's calls.
        self.made[f"{module}.{folding.__name__}"] = made = type(prepared)(prepared.packed(), **prepared.options)
        return made

    def backend_of(self, block: Callable[..., str], **sizes: Any) -> str:
        return block(self._named["backend"], **sizes, device=torch.device("meta"), dtype=self._named["dtype"])


@dataclass(frozen=True)
class Kernel:
    """One kernel, and the part of the network that launches it."""

    part: str  #: the path of the op, or `REST`
    name: str


def kernels(backend: str, model: str = "hifuse_small", batch: int = 1, dtype: torch.dtype = torch.bfloat16) -> list[Kernel]:
    """What a call with float32 images of 224 x 224 launches, in order.

    Raises:
        BackendError: the backend is not here.
    """
    configuration = Configuration(
        **create_model(model, NUM_CLASSES, device="meta").options.to_dict(), algorithm="auto",
        dtype=str(dtype).removeprefix("torch."), memory_format="channels_last", out_indices=None, settings={},
    )  # fmt: skip
    network = OptimizedHiFuse(configuration, _Shapes(configuration, dtype, backend))
    found: list[Kernel] = []
    with recording(ARCHITECTURE) as record, _Library(record), _told_apart(network, record, found), network._lent():
        # A call without what autocast knows of its device.
        images = torch.empty(batch, 3, SIZE, SIZE, device="meta")
        images = images if network._library in LISTED else network._prepare(images)
        network._run(images, FreshMaps(network.dtype, network.device))
    return found


@contextlib.contextmanager
def _told_apart(network: nn.Module, record: Record, found: list[Kernel]) -> Iterator[None]:
    """Within the block, what is launched goes to `found`, under the path of the op or the ops that launched it."""
    paths: dict[nn.Module, str] = {op: path for path, op in network.named_modules() if isinstance(op, PreparedOp)}

    def take(part: str) -> None:
        found.extend(Kernel(part, name) for each in record.launches for name in _names(each))
        record.launches.clear()

    def call(op: PreparedOp, *args: Any, **named: Any) -> Any:
        take(REST)
        out = nn.Module.__call__(op, *args, **named)
        take(paths[op])
        return out

    def together(calls: Sequence[tuple[Linear, Tensor, Tensor]]) -> list[Tensor]:
        take(REST)
        results = joint(calls)
        first, *others = (paths[op] for op, *_ in calls)
        take(", ".join([first, *(path.rpartition(".")[2] for path in others)]))
        return results

    joint = Linear.together
    # Hooks would have the parts of what is one launch called one after another.
    with mock.patch.object(PreparedOp, "__call__", call), mock.patch.object(Linear, "together", together):
        yield
    take(REST)


def _launches_of_products(launched: CudaLaunch) -> int:
    """How many kernels products are that are called together; the library decides that (csrc/cuda/product_parts.h)."""
    if library.lib is None:
        raise select.BackendError(f"backend 'cuda' cannot say which products are one launch: {library.why_missing}")
    count: int = library.lib.product_launches(launched.sizes, launched.numbers, OF_A_LARGE_GPU)
    return count


def _names(launched: Any) -> list[str]:
    """The kernels of what is on record."""
    if isinstance(launched, LibraryCall):
        return [f"library {launched.name}"]
    if not isinstance(launched, CudaLaunch):
        *_, folder, file = launched.kernel.fn.__module__.split(".")
        name = launched.kernel.fn.__name__.strip("_").removesuffix("_kernel")
        return [f"{folder if file.startswith('triton') else file} {name}"]
    if launched.entry == "gated_concat":
        return ["gated_concat, statistics", "gated_concat"]
    if launched.entry == "products":
        return ["product"] * _launches_of_products(launched)
    # Another kernel merges what several blocks saw, see csrc/cuda/max_mean.cu.
    merged = launched.entry == "max_mean_forward" and not launched.sizes[3] and launched.sizes[1] > SHARE
    return [launched.entry, *[f"{launched.entry}, end"] * merged]


def lines(found: list[Kernel]) -> list[list[str]]:
    """A line for each kind of op, the stages together, those with most kernels first; see `COLUMNS`."""
    by_call = Counter(kernel.part for kernel in found)
    kinds: dict[str, list[str]] = {}
    for part in by_call:
        kinds.setdefault(re.sub(r"\bstages\b\.|\.\d+|\b\d+\.", "", part), []).append(part)
    made = []
    for kind, parts in kinds.items():
        counts = [by_call[part] for part in parts]
        names = Counter(kernel.name for kernel in found if kernel.part in parts)
        each = f"{min(counts)} to {max(counts)}" if len(set(counts)) > 1 else str(counts[0])
        made.append([kind, str(len(parts)), each, str(sum(counts)), ", ".join(f"{n} {name}" for name, n in names.items())])
    return sorted(made, key=lambda line: -int(line[3]))


@click.command()
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True)
@click.option("--model", type=click.Choice(list_models()), default="hifuse_small", show_default=True)
def main(*, batch: int, model: str) -> None:
    """Count the kernels of a call of the frozen network on each backend."""
    out = console(width=160)
    for backend in BACKENDS:
        try:
            found = kernels(backend, model, batch)
        except select.BackendError as error:
            out.print(f"{backend}: not counted, {error}", highlight=False)
            continue
        title = f"{len(found)} kernels of a call of the frozen {model} on {backend!r}, bfloat16, {batch} image(s)"
        show(out, title, COLUMNS, ((line, False) for line in lines(found)))


if __name__ == "__main__":
    main()
