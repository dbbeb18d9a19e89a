"""Whether the building blocks of the CUDA kernels conform to their emulation on a GPU: tools/conformance.py notes it, `make
tune` asks. Kernels for one architecture alone are built on instructions that only such a comparison has seen."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hifuse_fast.files import writing

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "build" / "conformance" / "passed.txt"


def note(device: str, passed: bool, file: Path = FILE) -> None:
    """Keep that all cases conform on the GPU of this name, or that they do not."""
    if not passed:
        file.unlink(missing_ok=True)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with writing(file) as written:
        written.write(_stamp(device))


def holds(device: str, file: Path = FILE) -> bool:
    """Whether the comparison has passed on such a GPU, with the instructions as they are now."""
    return file.exists() and file.read_text(encoding="utf-8") == _stamp(device)


def _stamp(device: str) -> str:
    sources = sorted((ROOT / "csrc" / "cuda").glob("ptx*.cuh"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return f"{device}\n{digest}\n"
