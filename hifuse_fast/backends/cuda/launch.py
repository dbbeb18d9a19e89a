"""The one way to launch a CUDA kernel: on a GPU, on CPU tensors in the emulation, or not at all, on record.

A launcher (`cuda.py` of an op) allocates its results and calls `launch`. Nothing runs on the meta device or under the fake
tensors of torch.compile, so a launcher is its own shape function. The library itself allocates nothing and never waits, so
that CUDA graphs capture it.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from hifuse_fast.backends import record, tables
from hifuse_fast.backends.cuda import library

#: The dtypes of maps, as csrc/arguments.h counts them.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
ALIGNMENT = 16  #: bytes, of which the addresses are multiples that kernels are given
OF_A_LARGE_GPU = 132  # multiprocessors of an H200
DEPENDENT_LAUNCHES = "dependent_launches"  #: the section of a table, see csrc/cuda/start.cuh
PRODUCTS = "products"  #: likewise, see `multiprocessors_of_products`
EMULATED_MULTIPROCESSORS = 1  # so that a block of threads has several windows of a small map

_emulation = threading.Lock()  # which knows the memory and the errors of one launch at a time


@dataclass(frozen=True)
class Launch:
    """What one launch was called with, see `launch`."""

    entry: str
    sizes: tuple[int, ...]
    numbers: tuple[float, ...]
    reads: tuple[Tensor | None, ...]
    writes: tuple[Tensor | None, ...]
    counters: tuple[Tensor | None, ...] = ()


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason no CUDA kernel of ours can serve such tensors, or None."""
    if dtype not in DTYPES:
        return f"its kernels serve float32, bfloat16 and float16, not {dtype}"
    if device.type == "cuda":
        return library.why_not_device(device)
    if device.type == "cpu" and not library.EMULATED:
        there = "" if torch.cuda.is_available() else ", and there is no CUDA device"
        emulation = "on CPU tensors only its emulation runs (HIFUSE_CUDA_EMULATED=1), which is for tests"
        return f"it serves CUDA tensors{there}; {emulation}"
    return None if device.type in ("cpu", "meta") else f"it serves CUDA tensors, not {device.type}"


def launch(
    entry: str,
    sizes: Sequence[int],
    numbers: Sequence[float],
    reads: Sequence[Tensor | None],
    writes: Sequence[Tensor | None],
    scratch_of: str = "",
) -> None:
    """Call an entry point of the library on the device and the current stream of `reads[0]`.

    Args:
        entry: its name, of csrc/bindings/cuda.
        sizes, numbers: the op's options, the integers and the others.
        reads: what the kernels read; None for null.
        writes: what they write, wholly, and may read again; None for null. In the emulation it is NaN before.
        scratch_of: the library's function that says how much scratch memory the kernels take, see `scratch`, which comes after
            all that is written; "" for none. What is traced knows no sizes, so it is taken when the kernels run. Where blocks
            count each other (`counting` of the library), the entry point is given the multiprocessors too, behind `sizes`, and
            last of all counters: zero before the launch and after it.

    Raises:
        RuntimeError: what the library says, or in the emulation what the kernels did wrong.
    """
    if torch.compiler.is_compiling():  # which cannot look into the library
        like = reads[0]
        assert like is not None
        written = [like.new_empty(0) if each is None else each for each in writes]
        numbered = [int(size) if isinstance(size, bool) else size for size in sizes]  # beside a symbol no flag is a number
        torch.ops.hifuse_fast.cuda_launch(entry, numbered, numbers, reads, written, scratch_of)
    else:
        _launch(entry, sizes, numbers, reads, writes, scratch_of)


def _launch(
    entry: str,
    sizes: Sequence[int],
    numbers: Sequence[float],
    reads: Sequence[Tensor | None],
    writes: Sequence[Tensor | None],
    scratch_of: str = "",
) -> None:
    kept = Launch(entry, tuple(sizes), tuple(numbers), tuple(reads), tuple(writes))
    like = reads[0]
    assert like is not None
    if record.keep(kept) or not _runs(like):
        return
    kept = replace(kept, reads=tuple(map(_aligned, kept.reads)))
    if scratch_of:
        kept = _with_room(kept, scratch_of, like)
    for written in kept.writes:
        if written is not None and written.data_ptr() % ALIGNMENT:
            raise RuntimeError(f"{entry}: what it writes must begin at a multiple of {ALIGNMENT} bytes")
    if like.device.type == "cpu":
        _emulate(kept)
        return
    assert library.lib is not None
    library.lib.begin_early(begin_early(like.device))
    stream = torch.cuda.current_stream(like.device).cuda_stream
    if like.device.index == torch.cuda.current_device():
        _call(kept, stream)
    else:
        with torch.cuda.device(like.device):
            _call(kept, stream)


def begin_early(device: torch.device) -> bool:
    """Whether launches may begin before those before them have ended, as the table says: entry "on" of `DEPENDENT_LAUNCHES`."""
    return bool(tables.lookup(DEPENDENT_LAUNCHES, "*", tables.architecture(device), {"on": 0})["on"])


def _with_room(kept: Launch, scratch_of: str, like: Tensor) -> Launch:
    """The launch with the memory that its blocks of threads share, see `launch`."""
    assert library.lib is not None
    if scratch_of not in library.lib.counting:
        return replace(kept, writes=(*kept.writes, scratch(scratch_of, kept.sizes, kept.numbers, like)))
    count = multiprocessors_of_products(like.device)
    room = scratch(scratch_of, kept.sizes, kept.numbers, like, count)
    counted = _counters(like.device) if room.numel() else None
    return replace(kept, sizes=(*kept.sizes, count), writes=(*kept.writes, room), counters=(counted,))


def _aligned(tensor: Tensor | None) -> Tensor | None:
    """The tensor, or a copy that begins where kernels can read it: where it is traced, a launcher does not see the address."""
    return tensor if tensor is None or tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def aligned(x: Tensor) -> Tensor:
    """`x` if the kernels can take it as it lies in memory, else a copy that they can."""
    fits = x.stride(-1) == 1 and all(stride * x.itemsize % ALIGNMENT == 0 for stride in x.stride()[:-1])
    return x if fits and begins_aligned(x) else x.clone(memory_format=torch.contiguous_format)


def begins_aligned(x: Tensor) -> bool:
    """Whether `x` begins at a multiple of 16 bytes, as far as that is known."""
    if torch.compiler.is_compiling():
        return True  # a tensor that is traced has no address; the launch looks at it
    # Memory as a whole begins at more than that.
    if isinstance(x, FakeTensor) or x.device.type == "meta":
        return x.storage_offset() * x.itemsize % ALIGNMENT == 0
    return x.data_ptr() % ALIGNMENT == 0


def strided(x: Tensor) -> Tensor:
    """A map as kernels that take any strides want it: with its channels side by side."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _runs(like: Tensor) -> bool:
    return like.device.type != "meta" and not isinstance(like, FakeTensor)


def _call(kept: Launch, stream: int) -> None:
    getattr(library.lib, kept.entry)(
        kept.sizes, kept.numbers, *map(_given, (*kept.reads, *kept.writes, *kept.counters)), stream
    )


def _given(tensor: Tensor | None) -> tuple[int, ...]:
    """A tensor as the library takes it: its address, 0 where there is none, and its strides in elements."""
    if tensor is None or tensor.numel() == 0:
        return (0,)
    return (tensor.data_ptr(), *tensor.stride())


def _emulate(kept: Launch) -> None:
    """Run on CPU tensors, which the kernels may touch to the byte, and no memory else."""
    assert library.lib is not None
    emulation = library.lib.emulation
    with _emulation, torch.no_grad():
        for tensors, writable in ((kept.reads, False), (kept.writes, True), (kept.counters, True)):
            for tensor in tensors:
                if tensor is None or tensor.numel() == 0:
                    continue
                if tensors is kept.writes:
                    tensor.fill_(float("nan") if tensor.is_floating_point() else 255)
                emulation.allow(tensor.data_ptr(), extent(tensor), writable)
        _check_counters(kept, "before the launch")
        try:
            _call(kept, 0)
        finally:
            emulation.forget()
            errors = emulation.errors()
    if errors:
        raise RuntimeError(f"the emulation of {kept.entry} found: " + "\n".join(errors))
    _check_counters(kept, "after it")


def _check_counters(kept: Launch, when: str) -> None:
    if any(counter is not None and counter.any() for counter in kept.counters):
        raise RuntimeError(f"the emulation of {kept.entry} found: counters must be zero {when}")


def extent(tensor: Tensor) -> int:
    """Bytes from the first element of a tensor to the end of its last one."""
    last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.itemsize if tensor.numel() else 0


def multiprocessors(device: torch.device) -> int:
    """How many multiprocessors a device has; a large GPU's for the meta device, which stands for one."""
    if device.type == "meta":
        return OF_A_LARGE_GPU
    if device.type != "cuda":
        return EMULATED_MULTIPROCESSORS
    return _multiprocessors(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _multiprocessors(index: int) -> int:
    count: int = torch.cuda.get_device_properties(index).multi_processor_count
    return count


def multiprocessors_of_products(device: torch.device) -> int:
    """For how many multiprocessors a product is cut: the `share`, in percent, that the table says.

    Where a result has fewer tiles, parts of its sums have blocks of their own (csrc/cuda/product_parts.h), and up to two blocks
    for each of them are one launch. The bits are the same.
    """
    share: int = tables.lookup(PRODUCTS, "*", tables.architecture(device), {"share": 100})["share"]
    return multiprocessors(device) * share // 100


def scratch(
    entry: str, sizes: Sequence[int], numbers: Sequence[float], like: Tensor, cut_for: int | None = None
) -> Tensor:  # fmt: skip
    """Scratch memory for a launch, of as many bytes as the library's function `entry` says for the device of `like`.

    `cut_for`: the multiprocessors that the work is cut for, where these are not all of the device.
    """
    asked = not record.active() and _runs(like)
    count = multiprocessors(like.device) if cut_for is None else cut_for
    size = getattr(library.lib, entry)(tuple(sizes), tuple(numbers), count) if asked else 0
    return like.new_empty(size, dtype=torch.uint8)


class _Lent(threading.local):
    counters: Tensor | None = None


_lent = _Lent()


@contextlib.contextmanager
def counted_together(device: torch.device) -> Iterator[None]:
    """Within the block, launches of this thread share counters, which are set to zero once. All must be on one stream."""
    before, _lent.counters = _lent.counters, _zeros(device)
    try:
        yield
    finally:
        _lent.counters = before


def _counters(device: torch.device) -> Tensor:
    """Counters for a launch, which leaves them as it found them, at zero."""
    return _zeros(device) if _lent.counters is None or _lent.counters.device != device else _lent.counters


def _zeros(device: torch.device) -> Tensor:
    count = 0 if library.lib is None else library.lib.product_counters(multiprocessors(device))
    return torch.zeros(count, dtype=torch.int32, device=device)


_LIBRARY = torch.library.Library("hifuse_fast", "FRAGMENT")
_LIBRARY.define(
    "cuda_launch(str entry, SymInt[] sizes, float[] numbers, Tensor?[] reads, Tensor(a!)[] writes, str scratch_of='') -> ()"
)
_LIBRARY.impl("cuda_launch", _launch, "CompositeExplicitAutograd")
torch.library.register_fake("hifuse_fast::cuda_launch", lambda *_: None, lib=_LIBRARY)
