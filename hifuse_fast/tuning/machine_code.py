"""What the machine code of the CUDA kernels takes of a multiprocessor, read from the compiled library. Needs no GPU, no nvcc.

Registers and stack come from cuobjdump, threads and shared memory from the library itself, and issue slots are counted in the
disassembly: of a kernel as a whole, and of its largest loop, which is what a warp does for each window or tile. A
multiprocessor issues four slots a clock, so that slots times warps over that is the least time of a kernel.
"""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import triton

from hifuse_fast.backends.triton.compile import LIMITS, REGISTERS

COLUMNS = ("kernel", "threads", "regs", "spill", "shared", "blocks", "slots", "loop", "tensor cores", "note")
_ARCHITECTURE = re.compile(r"^(?:arch = |\s*code for )(sm_\d+\w?)")
_FUNCTION = re.compile(r"^\s*Function\s*:?\s*(\w+)\s*:?\s*$")
_USAGE = re.compile(r"\b(REG|STACK|LOCAL|SHARED):(\d+)")
_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
_TARGET = re.compile(r"0x([0-9a-f]+)")
_TENSOR_CORE = re.compile(r"(HMMA|HGMMA|UTCHMMA|IMMA|QGMMA|DMMA)\b")
_PADDING = "NOP"


@dataclass(frozen=True)
class Code:
    """A kernel as it was compiled for one architecture."""

    architecture: str
    kernel: str
    threads: int
    asked: int  #: blocks that a multiprocessor is to hold
    registers: int
    spill: int  #: bytes of local memory a thread
    shared: int  #: bytes a block
    slots: int  #: instructions of the kernel
    loop: int  #: instructions of its largest loop
    tensor_core: dict[str, int]  #: instruction -> how often it stands in the code

    @property
    def blocks(self) -> int:
        """Blocks that a multiprocessor holds."""
        shared_kib, _, most_warps = LIMITS[table_architecture(self.architecture)]
        warps = -(-self.threads // 32)
        by_registers = REGISTERS // (-(-self.registers // 8) * 8 * 32 * warps)
        return min(by_registers, shared_kib * 1024 // (self.shared + 1024), most_warps // warps)

    @property
    def faults(self) -> list[str]:
        """Why it cannot be launched, or is not to be: nothing may spill."""
        _, block_kib, _ = LIMITS[table_architecture(self.architecture)]
        spills = [f"spills {self.spill} bytes"] if self.spill else []
        return spills + ([f"shared memory over the {block_kib} KiB there are"] if self.shared > block_kib * 1024 else [])

    @property
    def notes(self) -> list[str]:
        """What else there is to say."""
        return [f"{self.asked} blocks were asked for"] if self.blocks < self.asked else []

    def cells(self) -> list[str]:
        """The line of the table, see `COLUMNS`."""
        note = "; ".join([*(f"FAILS: {fault}" for fault in self.faults), *self.notes])
        cores = ", ".join(f"{name} {count}" for name, count in self.tensor_core.items())
        numbers = (self.threads, self.registers, self.spill, self.shared, self.blocks, self.slots, self.loop)
        return [self.kernel, *map(str, numbers), cores, note]


def table_architecture(architecture: str) -> str:
    """The architecture without its letter: "sm_90" of "sm_90a"."""
    return architecture.rstrip("af")


def codes(library: Any) -> list[Code]:
    """Every kernel of the library `hifuse_fast._cuda`, by architecture and name.

    Raises:
        subprocess.CalledProcessError: the file cannot be read.
    """
    known = {demangled(mangled): (threads, blocks, shared) for _, mangled, threads, blocks, shared in library.listed()}
    usage = dict(usages(_dump(library.__file__, "--dump-resource-usage")))
    made = []
    for (architecture, symbol), instructions in functions(_dump(library.__file__, "-sass")):
        kernel = kernel_of(demangled(symbol))
        threads, blocks, shared = known[kernel]
        taken = usage[architecture, symbol]
        operations = [operation for _, operation, _ in instructions]
        cores = Counter(match[1] for operation in operations if (match := _TENSOR_CORE.match(operation)))
        made.append(
            Code(
                architecture,
                short(kernel),
                threads,
                blocks,
                taken["REG"],
                taken["STACK"] + taken["LOCAL"],
                shared,
                sum(operation != _PADDING for operation in operations),
                loop(instructions),
                dict(sorted(cores.items())),
            )
        )
    return sorted(made, key=lambda code: (int(table_architecture(code.architecture).removeprefix("sm_")), code.kernel))


Place = tuple[str, str]  #: architecture and symbol
Instruction = tuple[int, str, str]  #: address, operation and operands


def usages(text: str) -> Iterator[tuple[Place, dict[str, int]]]:
    """What `cuobjdump --dump-resource-usage` says of each function."""
    architecture = symbol = ""
    for line in text.splitlines():
        if match := _ARCHITECTURE.match(line):
            architecture = match[1]
        elif match := _FUNCTION.match(line):
            symbol = match[1]
        elif symbol and "REG:" in line:
            yield (architecture, symbol), {name: int(value) for name, value in _USAGE.findall(line)}


def functions(text: str) -> list[tuple[Place, list[Instruction]]]:
    """The instructions of each function, of what `cuobjdump -sass` prints."""
    found: list[tuple[Place, list[Instruction]]] = []
    architecture = ""
    for line in text.splitlines():
        if match := _ARCHITECTURE.match(line):
            architecture = match[1]
        elif match := _FUNCTION.match(line):
            found.append(((architecture, match[1]), []))
        elif found and (match := _INSTRUCTION.match(line)):
            found[-1][1].append((int(match[1], 16), match[2], match[3]))
    return found


def loop(instructions: list[Instruction]) -> int:
    """Instructions of the largest loop: from where a branch leads back to, to the branch. 0 where there is none."""
    backward = [
        (address, int(target[1], 16))
        for address, operation, operands in instructions
        if operation.startswith("BRA") and (target := _TARGET.search(operands)) and int(target[1], 16) < address
    ]
    if not backward:
        return 0
    end, begin = max(backward, key=lambda branch: branch[0] - branch[1])
    return sum(begin <= address <= end and operation != _PADDING for address, operation, _ in instructions)


def kernel_of(entry: str) -> str:
    """The type of the kernel whose `entry` this is, demangled: "cuda::K<7>" of "void entry<cuda::K<7> >(...)"."""
    begin = entry.index("entry<") + len("entry<")
    depth = 1
    for end in range(begin, len(entry)):
        depth += {"<": 1, ">": -1}.get(entry[end], 0)
        if depth == 0:
            return entry[begin:end].strip()
    raise ValueError(f"{entry!r} is no kernel's entry")


def short(kernel: str) -> str:
    """A type without its namespaces."""
    return re.sub(r"\b(hifuse::)?(cuda::)?(\(anonymous namespace\)::)?", "", kernel).replace("__nv_bfloat16", "bf16")


@functools.cache
def demangled(symbol: str) -> str:
    """A symbol as it stands in the source."""
    demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    demangle.restype = ctypes.c_void_p
    status = ctypes.c_int()
    address = demangle(symbol.encode(), None, None, ctypes.byref(status))
    if status.value:
        return symbol
    text = ctypes.string_at(address).decode()
    free = ctypes.CDLL(None).free
    free.argtypes = [ctypes.c_void_p]
    free(address)
    return text


def _dump(file: str, option: str) -> str:
    tool = triton.knobs.nvidia.cuobjdump.path
    return subprocess.run([tool, option, file], capture_output=True, text=True, check=True).stdout
