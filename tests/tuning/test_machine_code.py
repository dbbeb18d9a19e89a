"""What is read from machine code: of samples as cuobjdump prints them, and of the library where it is built."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from hifuse_fast.tuning import machine_code
from hifuse_fast.tuning.machine_code import Code

LARGEST = 15_000_000  # bytes of the library
SYMBOL = "_ZN6hifuse4cuda5entryINS0_7ForwardI13__nv_bfloat16Li7EEEEEvNT_6ParamsE"
USAGE = f"""
Fatbin elf code:
================
arch = sm_90a
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function {SYMBOL}:
  REG:140 STACK:8 SHARED:1024 LOCAL:4 CONSTANT[0]:552 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
CODE = f"""
	code for sm_90a
		Function : {SYMBOL}
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;   /* 0x00000a00ff017624 */
                                                                             /* 0x000fe400078e00ff */
        /*0010*/                   S2R R7, SR_TID.X ;                        /* 0x0000000000077919 */
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;     /* 0x0000000000077919 */
        /*0030*/                   LDGSTS.E.BYPASS.128 [R2], [R4.64] ;       /* 0x0000000000077919 */
        /*0040*/              @!P0 BRA 0x30 ;                                /* 0x0000000000077919 */
        /*0050*/             @!UP1 UIADD3 UR4, UR4, 0x1, URZ ;               /* 0x0000000000077919 */
        /*0060*/               @P1 BRA 0x20 ;                                /* 0x0000000000077919 */
        /*0070*/               @P2 BRA 0x90 ;                                /* 0x0000000000077919 */
        /*0080*/                   EXIT ;                                    /* 0x0000000000077919 */
        /*0090*/                   BRA 0x90;                                 /* 0x0000000000077919 */
        /*00a0*/                   NOP;                                      /* 0x0000000000077919 */
"""


def test_registers_and_local_memory_are_read() -> None:
    ((place, taken),) = machine_code.usages(USAGE)
    assert place == ("sm_90a", SYMBOL)
    assert (taken["REG"], taken["STACK"], taken["LOCAL"]) == (140, 8, 4)


def test_slots_are_those_of_the_kernel_and_of_its_largest_loop() -> None:
    ((place, instructions),) = machine_code.functions(CODE)
    assert place == ("sm_90a", SYMBOL)
    assert [operation for _, operation, _ in instructions][:3] == ["IMAD.MOV.U32", "S2R", "HMMA.16816.F32.BF16"]
    assert len(instructions) == 11
    assert machine_code.loop(instructions) == 5  # 0x20 to 0x60
    assert machine_code.loop(instructions[:4]) == 0


def test_a_kernel_has_the_name_of_its_struct() -> None:
    kernel = machine_code.kernel_of(machine_code.demangled(SYMBOL))
    assert kernel == "hifuse::cuda::Forward<__nv_bfloat16, 7>"
    assert kernel == machine_code.demangled("N6hifuse4cuda7ForwardI13__nv_bfloat16Li7EEE")
    assert machine_code.short(kernel) == "Forward<bf16, 7>"
    assert machine_code.demangled("no symbol") == "no symbol"


class Library:
    __file__ = "_cuda.so"

    @staticmethod
    def listed() -> list[tuple[str, str, int, int, int]]:
        return [("forward", "N6hifuse4cuda7ForwardI13__nv_bfloat16Li7EEE", 128, 3, 24576)]


def test_all_of_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_code, "_dump", lambda _, option: CODE if option == "-sass" else USAGE)
    (code,) = machine_code.codes(Library)
    assert code == Code("sm_90a", "Forward<bf16, 7>", 128, 3, 140, 12, 24576, 10, 5, {"HMMA": 1})
    assert code.blocks == 3  # 65536 // (144 * 128) by registers
    assert code.faults == ["spills 12 bytes"]
    cells = dict(zip(machine_code.COLUMNS, code.cells(), strict=True))
    assert (cells["blocks"], cells["tensor cores"], cells["note"]) == ("3", "HMMA 1", "FAILS: spills 12 bytes")


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "architecture", "blocks"),
    [
        (128, 24576, 128, "sm_80", 4),
        (32, 24576, 128, "sm_80", 6),  # by shared memory: 164 KiB, of which a block takes one more
        (32, 24576, 128, "sm_90a", 9),
        (16, 0, 1024, "sm_90a", 2),  # by warps
        (255, 233472, 256, "sm_100", 0),
    ],
)
def test_how_many_blocks_a_multiprocessor_holds(
    registers: int, shared: int, threads: int, architecture: str, blocks: int
) -> None:
    code = Code(architecture, "K", threads, 4, registers, 0, shared, 1, 0, {})
    assert code.blocks == blocks
    assert code.notes == ([] if blocks >= 4 else ["4 blocks were asked for"])
    assert bool(code.faults) == (blocks == 0)


@pytest.mark.skipif(importlib.util.find_spec("hifuse_fast._cuda") is None, reason="the CUDA kernels are not built")
def test_no_kernel_of_the_library_spills_or_is_too_large() -> None:
    library = importlib.import_module("hifuse_fast._cuda")
    found = machine_code.codes(library)
    listed = {mangled for _, mangled, *_ in library.listed()}
    for architecture in library.build_info()["architectures"].split(";"):
        number, _, kind = architecture.partition("-")
        if kind != "virtual":
            there = [code for code in found if code.architecture == f"sm_{number}"]
            assert len(there) == len(listed)
    assert not [(code.architecture, code.kernel, code.faults) for code in found if code.faults]
    tuned = [code for code in found if "Whole<" in code.kernel]
    assert tuned
    assert not [(code.architecture, code.kernel, code.blocks) for code in tuned if code.blocks < 3]
    assert Path(library.__file__).stat().st_size < LARGEST
