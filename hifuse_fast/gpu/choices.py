"""Which of an op's two ways "auto" takes on a GPU: its Triton kernels, or the reference.

The reference is the vendor's library between PyTorch's pointwise kernels. The table of an architecture says which, as it says
tile sizes (configs.py): in a section of the op's name, where `triton` is 1 or 0, and the key the dtype's bits and what the op
gives. `make tune` measures it. Needs no Triton but where there is a device.
"""

from __future__ import annotations

import torch

from hifuse_fast.gpu import configs

CHOICE = "triton"
PRODUCT = "fused"  #: in the tables of kernels that have a product: whether it is theirs, or the vendor's


def takes_triton(op: str, key: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether "auto" takes the Triton kernels of the function `op` over maps."""
    from hifuse_fast.gpu.launch import architecture

    return bool(configs.lookup(op, f"{8 * dtype.itemsize}-bit {key}", architecture(device))[CHOICE])


def described() -> tuple[list[str], list[list[str]]]:
    """A table of all choices, its head and its lines: of the ops, then of the products; keys that agree share a line."""
    tables = [configs.table(architecture) for architecture in configs.architectures()]
    body = []
    for flag, title in ((CHOICE, "{}"), (PRODUCT, "product of {}")):
        for name in (name for name, section in tables[0].items() if flag in section["*"]):
            body += _lines(title.format(name.removesuffix("_forward").removesuffix("_dense")), [each[name] for each in tables])
    return ["op", "calls", *configs.architectures()], body


def _lines(title: str, sections: list[dict[str, dict[str, object]]]) -> list[list[str]]:
    keys: dict[tuple[str, ...], list[str]] = {}
    for key in dict.fromkeys(key for section in sections for key in section):
        cells = tuple(_cell(section.get(key) or section["*"]) for section in sections)
        keys.setdefault(cells, []).append("all others" if key == "*" else key)
    if len(keys) == 1:
        return [[title, "all", *cells] for cells in keys]
    ordered = sorted(keys.items(), key=lambda line: "all others" in line[1])  # which come last
    return [[title, "all others" if "all others" in alike else ", ".join(alike), *cells] for cells, alike in ordered]


def _cell(entry: dict[str, object]) -> str:
    """What serves, and how that is known."""
    served = "Triton" if entry.get(CHOICE, entry.get(PRODUCT)) else "library"
    ratio = "" if configs.REFERENCE not in entry else f"library / Triton {entry[configs.REFERENCE]}, "
    return f"{served} ({ratio}{entry['origin']})"
