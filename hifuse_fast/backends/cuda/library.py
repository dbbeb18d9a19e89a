"""Loads the CUDA kernels, `hifuse_fast._cuda`, or remembers why it could not; and says which devices it serves.

Nothing here raises at import, and nothing asks for a driver: a machine without a GPU imports the library as any other one.
"""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path
from types import ModuleType

import torch

from hifuse_fast.backends.tracing import constant

#: Kernels run in their emulation, on CPU tensors: HIFUSE_CUDA_EMULATED=1, for tests.
EMULATED = os.environ.get("HIFUSE_CUDA_EMULATED") == "1"

_NAME = "hifuse_fast._cuda_emulated" if EMULATED else "hifuse_fast._cuda"
# setup.py writes this file when it installs without the library, so that the reason survives pip's hidden output.
_SKIPPED = Path(__file__).parents[2] / "_cuda_skipped.txt"


def _load() -> tuple[ModuleType | None, str | None]:
    try:
        return importlib.import_module(_NAME), None
    except ModuleNotFoundError as error:
        if error.name != _NAME:
            return None, f"the CUDA kernels failed to load: {error}"
        if EMULATED:
            return None, "the emulated CUDA kernels are not built: `make test` builds them"
        reason = _SKIPPED.read_text().strip() if _SKIPPED.exists() else "hifuse_fast was installed without building them"
        return None, f"the CUDA kernels are not built: {reason}"
    except (ImportError, OSError) as error:
        return None, f"the CUDA kernels failed to load: {error}"


#: The pybind11 module, or None; and why it is None.
lib, why_missing = _load()


@constant
def why_not_device(device: torch.device) -> str | None:
    """The reason the library cannot run on this CUDA device, or None."""
    return _why_not_device(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _why_not_device(index: int) -> str | None:
    if EMULATED:
        return "HIFUSE_CUDA_EMULATED=1 has its kernels run on CPU tensors alone"
    if torch.version.hip is not None or lib is None:
        return "it serves devices of NVIDIA alone"
    built, driver = lib.build_info()["cuda"], torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]
    if driver // 1000 < int(built.split(".")[0]):
        return f"its library was built with CUDA {built}, and the driver knows CUDA {driver // 1000}.{driver % 1000 // 10}"
    architectures, capability = lib.build_info()["architectures"].split(";"), torch.cuda.get_device_capability(index)
    if any(runs_on(architecture, capability) for architecture in architectures):
        return None
    return "its library was built for {}, not for compute capability {}.{}".format(", ".join(architectures), *capability)


def runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for an architecture, in CMake's words, runs on a device: "80-real", "90a-real", "100-virtual".

    Machine code runs within its major version, from its minor version on; that of an architecture with a letter on that one
    alone (a) or on its family (f). PTX without a letter is compiled for whatever comes later.
    """
    number, _, kind = architecture.partition("-")
    built = int(number.rstrip("af"))
    major, minor = divmod(built, 10)
    if number.endswith("a"):
        return (major, minor) == capability
    if kind == "virtual" and not number.endswith("f"):
        return (major, minor) <= capability
    return major == capability[0] and minor <= capability[1]
