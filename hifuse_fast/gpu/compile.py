"""Ahead-of-time compilation of a recorded launch, and what its machine code takes of a multiprocessor. Needs no GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hifuse_fast.gpu.launch import Launch

TRITON_OPTIONS = ("num_warps", "num_stages")
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32", torch.int64: "*i64"}
TENSOR_CORE = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync)\b")
REGISTERS = 65536  # of a multiprocessor
# Of an architecture: KiB of shared memory a multiprocessor has and a program may have at most, and warps that fit.
LIMITS = {"sm_80": (164, 163, 64), "sm_86": (100, 99, 48), "sm_90": (228, 227, 64), "sm_100": (228, 227, 64)}


@dataclass(frozen=True)
class Resources:
    """What a program of the kernel takes. `spill` is bytes of local memory a thread; `occupancy` a share of all warps."""

    registers: int
    spill: int
    shared: int  #: bytes
    tensor_core: dict[str, int]  #: instruction -> how often it stands in the PTX
    occupancy: float
    limit: int  #: bytes of shared memory that a program may take

    @property
    def ok(self) -> bool:
        """Whether it can be launched and nothing of it spills."""
        return self.spill == 0 and self.shared <= self.limit


def compile_launch(recorded: Launch, architecture: str) -> Any:
    """Triton's compiled kernel, as this launch would compile it on `architecture`."""
    kernel, options = recorded.kernel, dict(recorded.constants)
    chosen = {name: options.pop(name) for name in TRITON_OPTIONS if name in options}
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    values = dict(zip(kernel.arg_names, recorded.args, strict=False)) | options
    for i, name in enumerate(kernel.arg_names):
        value = values[name]
        signature[name] = "constexpr" if kernel.params[i].is_constexpr else _type_of(value)
        if signature[name] == "constexpr":
            constants[i,] = value
        elif isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[i,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32), options=chosen)


def resources(compiled: Any, architecture: str) -> Resources:
    """What `compiled` takes on `architecture`."""
    usage = _usage(compiled.asm["cubin"])
    warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
    shared_kib, program_kib, most_warps = LIMITS[architecture]
    found = TENSOR_CORE.findall(compiled.asm["ptx"])
    by_registers = REGISTERS // (-(-usage["REG"] // 8) * 8 * 32 * warps)
    programs = min(by_registers, shared_kib * 1024 // (shared + 1024), most_warps // warps)
    return Resources(
        registers=usage["REG"],
        spill=usage["STACK"],
        shared=shared,
        tensor_core={name: found.count(name) for name in sorted(set(found))},
        occupancy=programs * warps / most_warps,
        limit=program_kib * 1024,
    )


def _type_of(value: Any) -> str:
    """The type of an argument in a kernel's signature; Triton makes an integer 1 a constant."""
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if value == 1:
        return "constexpr"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _usage(cubin: bytes) -> dict[str, int]:
    """REG, STACK and the like, as cuobjdump reads them from machine code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = triton.knobs.nvidia.cuobjdump.path
        text = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}
