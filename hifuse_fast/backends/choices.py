"""Which of an op's two ways "auto" takes on a GPU: its Triton kernels, or the reference.

The reference is the vendor's library between PyTorch's pointwise kernels. The table of an architecture says which, as it says
tile sizes (tables.py): in a section of the op's name, where `triton` is 1 or 0, and the key the dtype's bits and what the op
gives. `make tune` measures it. Needs no Triton.
"""

from __future__ import annotations

import torch

from hifuse_fast.backends import tables

CHOICE = "triton"
PRODUCT = "fused"  #: in the tables of kernels that have a product: whether it is theirs, or the vendor's


def takes_triton(op: str, key: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether "auto" takes the Triton kernels of the function `op` over maps."""
    return bool(tables.lookup(op, f"{8 * dtype.itemsize}-bit {key}", tables.architecture(device))[CHOICE])
