"""Compiles a recorded launch ahead of time, and reads what its machine code takes of a multiprocessor. Needs no GPU."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hifuse_fast.backends.record import Record, recording
from hifuse_fast.backends.triton.launch import Launch

TRITON = tuple(map(int, triton.__version__.split(".")[:2]))
TRITON_OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32", torch.int64: "*i64"}
TENSOR_CORE = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync)\b")
DOT = re.compile(r"\btt\.dot\b.*: tensor<([\dx]+)x(\w+)> \* .*-> tensor<([\dx]+)x\w+>")
REGISTERS = 65536  # of a multiprocessor
# Of an architecture: KiB of shared memory a multiprocessor has and a program may have at most, and warps that fit.
LIMITS = {"sm_80": (164, 163, 64), "sm_86": (100, 99, 48), "sm_90": (228, 227, 64), "sm_100": (228, 227, 64)}


@dataclass(frozen=True)
class Resources:
    """What a program of the kernel takes. `spill` is bytes of local memory a thread; `occupancy` a share of all warps."""

    warps: int
    registers: int
    spill: int
    shared: int  #: bytes
    tensor_core: dict[str, int]  #: instruction -> how often it stands in the PTX
    occupancy: float
    limit: int  #: bytes of shared memory that a program may take
    wgmma_fits: bool  #: whether a product of the kernel is such that Hopper's warpgroup instruction can take it

    @property
    def faults(self) -> list[str]:
        """Why it cannot be launched, or is not to be: nothing may spill."""
        spills = [f"spills {self.spill} bytes"] if self.spill else []
        return spills + ([f"shared memory over the {self.limit} bytes there are"] if self.shared > self.limit else [])


@dataclass(frozen=True)
class Compilation:
    """All that decides the machine code of a launch. Equal ones are one compilation. It can be sent to another process."""

    kernel: str  #: module:function
    architecture: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[str, ...]  #: arguments that are multiples of 16
    options: tuple[tuple[str, int], ...]  #: Triton's own

    def compile(self) -> Any:
        """Triton's compiled kernel."""
        module, name = self.kernel.split(":")
        kernel = getattr(importlib.import_module(module), name)
        place = {argument: (i,) for i, argument in enumerate(kernel.arg_names)}
        # As a launch writes them, so that what is compiled here is found in Triton's cache by a launch.
        free = {parameter.name for parameter in kernel.params if parameter.do_not_specialize}
        constants = dict(self.constants)
        hinted = [name for name, kind in self.signature if name not in free and _hinted(kind, constants.get(name))]
        hints = {place[name]: [["tt.divisibility", 16]] if name in self.divisible else [] for name in hinted}
        source = ASTSource(
            kernel,
            signature=dict(self.signature),
            constexprs={place[argument]: value for argument, value in self.constants},
            attrs=hints,
        )
        target = GPUTarget("cuda", int(self.architecture.removeprefix("sm_")), 32)
        return triton.compile(source, target=target, options=dict(self.options))


def compilation(recorded: Launch, architecture: str) -> Compilation:
    """How this launch would be compiled on `architecture`."""
    kernel, options = recorded.kernel, dict(recorded.constants)
    chosen = {name: options.pop(name) for name in TRITON_OPTIONS if name in options}
    values = dict(zip(kernel.arg_names, recorded.args, strict=False)) | options
    signature = {
        name: "constexpr" if parameter.is_constexpr else _type_of(values[name], parameter.do_not_specialize)
        for name, parameter in zip(kernel.arg_names, kernel.params, strict=True)
    }
    specialised = {parameter.name for parameter in kernel.params if not parameter.do_not_specialize}
    runtime = [name for name, kind in signature.items() if kind != "constexpr" and name in specialised]
    return Compilation(
        kernel=f"{kernel.fn.__module__}:{kernel.fn.__qualname__}",
        architecture=architecture,
        signature=tuple(signature.items()),
        constants=tuple((name, values[name]) for name, kind in signature.items() if kind == "constexpr"),
        divisible=tuple(name for name in runtime if _divisible(values[name])),
        options=tuple(sorted(chosen.items())),
    )


def compilations(record: Record) -> list[Compilation]:
    """How the launches of Triton's kernels on a record would be compiled."""
    return [compilation(launch, record.architecture) for launch in record.launches if isinstance(launch, Launch)]


def compile_launch(recorded: Launch, architecture: str) -> Any:
    """Triton's compiled kernel, as this launch would compile it on `architecture`."""
    return compilation(recorded, architecture).compile()


def compile_ahead(call: Callable[[], object], jobs: int | None = None) -> int:
    """Compile what `call` launches on the current CUDA device, on several cores, into Triton's cache.

    A training step of HiFuse launches some 170 different kernels. Without this, its first call compiles them one after another.

    Args:
        call: it runs with its launches left out, so what it returns and what it writes (running statistics) is garbage. Let it
            use a copy of the network, or call this before weights are loaded.
        jobs: threads; None for one a core.

    Returns:
        How many kernels were compiled.
    """
    architecture = "sm_{}{}".format(*torch.cuda.get_device_capability())
    with recording(architecture) as record:
        call()
    todo = list(dict.fromkeys(compilations(record)))
    with ThreadPoolExecutor(jobs or len(os.sched_getaffinity(0))) as pool:
        list(pool.map(Compilation.compile, todo))
    return len(todo)


def resources(compiled: Any, architecture: str) -> Resources:
    """What `compiled` takes on `architecture`."""
    usage = _usage(compiled.asm["cubin"])
    warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
    shared_kib, program_kib, most_warps = LIMITS[architecture]
    found = TENSOR_CORE.findall(compiled.asm["ptx"])
    by_registers = REGISTERS // (-(-usage["REG"] // 8) * 8 * 32 * warps)
    programs = min(by_registers, shared_kib * 1024 // (shared + 1024), most_warps // warps)
    return Resources(
        warps=warps,
        registers=usage["REG"],
        spill=usage["STACK"],
        shared=shared,
        tensor_core={name: found.count(name) for name in sorted(set(found))},
        occupancy=programs * warps / most_warps,
        limit=program_kib * 1024,
        wgmma_fits=any(_fits_wgmma(dtype, result, warps) for _, dtype, result in DOT.findall(compiled.asm["ttir"])),
    )


def _fits_wgmma(dtype: str, result: str, warps: int) -> bool:
    """Whether a warpgroup (four warps) can take the product: multiples of 64 rows and of 8 columns, 16-bit operands."""
    sides = [int(side) for side in result.split("x")]
    return len(sides) == 2 and sides[0] % 64 == 0 and sides[1] % 8 == 0 and dtype in ("bf16", "f16") and warps % 4 == 0


def _hinted(kind: str, constant: Any) -> bool:
    """Whether a launch writes a hint for an argument, if an empty one; of constants Triton before 3.7 took words for hints."""
    if kind == "constexpr" and TRITON < (3, 7):
        return isinstance(constant, str)
    return kind != "fp32"


def _type_of(value: Any, general: bool) -> str:
    """The type of an argument in a kernel's signature. Triton makes the integer 1 a constant, unless told to stay general."""
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if value is None:
        return "constexpr"
    if isinstance(value, float):
        return "fp32"
    if value == 1 and not general:
        return "constexpr"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _divisible(value: Any) -> bool:
    """Whether Triton takes the argument for a multiple of 16, as the addresses of torch's tensors are."""
    return isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0)


def _usage(cubin: bytes) -> dict[str, int]:
    """REG, STACK and the like, as cuobjdump reads them from machine code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = triton.knobs.nvidia.cuobjdump.path
        text = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}
