"""What this machine has, what was built, and which backend serves which op: `hifuse_fast.info()`."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import torch

from hifuse_fast._version import __version__
from hifuse_fast.backends.cuda import library as cuda
from hifuse_fast.backends.native import library
from hifuse_fast.backends.select import BACKENDS, OPS, why_not


@dataclass(frozen=True)
class Info:
    """What this machine has, what was built, and which backend serves which op (None) or why it does not (a reason).

    Ops go by the name of their public function: "linear" is the one over maps, "prepare_linear" makes the prepared op.
    """

    version: str
    machine: dict[str, str]
    build: dict[str, str]
    ops: dict[str, dict[str, str | None]]

    def __str__(self) -> str:
        lines = [f"hifuse_fast {self.version}"]
        for title, rows in (("machine", self.machine), ("build", self.build)):
            lines += [f"\n{title}"] + [f"  {key:<24}{value}" for key, value in rows.items()]
        lines.append("\nbackends")
        width = max(map(len, self.ops)) + 2
        for op, served in self.ops.items():
            for backend, reason in served.items():
                lines.append(f"  {op:<{width}}{backend:<16}{'yes' if reason is None else 'no: ' + reason}")
        return "\n".join(lines)


def info() -> Info:
    """What this machine has, what was built, and which backend serves what, with reasons where one does not."""
    return Info(__version__, _machine(), _build(), {op: _served(op) for op in OPS})


def _machine() -> dict[str, str]:
    rows = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "torch cpu capability": torch.backends.cpu.get_cpu_capability(),
    }
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows["cuda devices"] = ", ".join(devices) or "none"
    return rows


def _build() -> dict[str, str]:
    return {**_native(), **_cuda()}


def _native() -> dict[str, str]:
    if library.lib is None:
        return {"native library": f"no: {library.why_missing}"}
    return {
        "native library": str(library.lib.__file__),
        **{key: str(value) for key, value in library.lib.build_info().items()},
        "instruction sets built": ", ".join(library.lib.compiled_isas()),
        "instruction sets usable": ", ".join(library.lib.usable_isas()),
        "instruction set in use": library.lib.isa(),
        "cores usable": str(library.lib.usable_cores()),
    }


def _cuda() -> dict[str, str]:
    if cuda.lib is None:
        return {"cuda library": f"no: {cuda.why_missing}"}
    return {"cuda library": str(cuda.lib.__file__), **{f"{key} of it": value for key, value in cuda.lib.build_info().items()}}


def _served(op: str) -> dict[str, str | None]:
    """For each backend, whether it could serve a float32 call on the devices of this machine."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return {
        f"{backend} {device}": why_not(op, backend, device=torch.device(device), dtype=torch.float32)
        for backend in BACKENDS[1:]
        for device in devices
    }
