"""Loads the compiled library `hifuse_fast._C`, or remembers why it could not; and says when it serves a prepared op.

Importing `_C` registers the dispatcher ops `torch.ops.hifuse_fast.*` and gives access to the build and CPU information; their
fakes are registered here too.
Nothing here raises at import: a package without the library is a complete pure-PyTorch package.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.native import fakes, flops

# setup.py writes this file when it installs without the library, so that the reason survives pip's hidden output.
_SKIPPED = Path(__file__).parents[2] / "_native_skipped.txt"


def _load() -> tuple[ModuleType | None, str | None]:
    try:
        found = importlib.import_module("hifuse_fast._C")
        fakes.register(found)
        flops.register()
        return found, None
    except ModuleNotFoundError as error:
        if error.name != "hifuse_fast._C":
            return None, f"the compiled library failed to load: {error}"
        reason = _SKIPPED.read_text().strip() if _SKIPPED.exists() else "hifuse_fast was installed without building it"
        return None, f"the compiled library hifuse_fast._C is not built: {reason}"
    except (ImportError, OSError) as error:
        return None, f"the compiled library failed to load: {error}"
    except RuntimeError as error:  # an op of these sources is not in it
        return None, f"the compiled library was built of other sources, build it again: {error}"


#: The pybind11 module, or None; and why it is None.
lib, why_missing = _load()


def why_not_native(*, device: torch.device, dtype: torch.dtype, **_: Any) -> str | None:
    """The reason the compiled library cannot serve a prepared op, or None."""
    if device.type != "cpu":
        return f"there is no native kernel for {device.type} tensors yet"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"the kernels serve float32 and bfloat16, not {dtype}"
    return None if lib is not None else why_missing


def multiplies_bfloat16() -> bool:
    """Whether the kernels in use have instructions for products of bfloat16, and for those of four bytes at once."""
    return lib is not None and lib.isa() in ("avx512_bf16", "amx")


def has_tiles() -> bool:
    """Whether products of bfloat16 are made by tiles (AMX), which multiply faster than Winograd's transforms are computed."""
    return lib is not None and lib.isa() == "amx"


def own(tensor: Tensor) -> Tensor:
    """A copy of a tensor of a file: in the file's mapping it lies unaligned, and changes with the file."""
    packed = lib is not None and tensor.dim() == 1 and tensor.dtype in (torch.float32, torch.bfloat16, torch.int8)
    copy: Tensor = torch.ops.hifuse_fast.copy_weight(tensor) if packed else tensor.clone()  # the op's memory has larger pages
    return copy
