"""Which backend "auto" takes on a GPU: the first that can serve, in the order that the table of the architecture gives.

`tables/<architecture>.toml` has a section for each op, by the name of its public function: "linear" is the function over maps,
"prepare_linear" the prepared op. An entry of it says

    "16-bit 96 pixels" = { order = ["triton", "reference"], times = { reference = 3.01 }, origin = "NVIDIA H200, 2026-11-26" }

- `order`: backends, the best one first. One that cannot serve the call, or that this version does not know, is passed over;
  the reference (PyTorch's own operators) serves at last, whether it is named or not.
- `times`: the time of each other backend over that of the first, where they were measured; see `tuning/rank.py`.
- `origin`: device, date and versions of the measurement, or "predicted".

**Keys.** `tables.key` builds them all, of what decides how a call is served:

    [<bits>-bit ]<sizes and words>

- bits: of the dtype of the arithmetic, 16 for bfloat16 and float16. Keys of ops always begin with them.
- sizes: channels of the input, then of what the op makes of it, then others; never the batch or the size of the map.
- words: options that are on, in the order of the op's arguments; an option that is off has no word.

A prepared op has the key of the function that computes the same, as far as that is known when it is prepared. The key "*" is
for all calls without an entry of their own. Tile sizes of kernels stand in the same tables, under the name of the kernel. Their
keys are built alike, of what decides the tile: so they lack the bits where the dtype does not matter.

A backend that an order does not name is not taken: it was wrong when the others were measured, or was not there yet. Where
a table says nothing of a call, neither measured nor predicted, the order is `DEFAULT`.

A CPU has no table. Needs no Triton.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hifuse_fast.backends import tables

REFERENCE = "reference"
DEFAULT = ("triton", "cuda", REFERENCE)  #: where a table says nothing
PRODUCT = "fused"  #: in the tables of kernels that have a product: whether it is theirs, or the vendor's


def best(op: str, key: str, device: torch.device, able: Sequence[str]) -> str:
    """The backend that serves a call on `device`: the first of the order that is among `able`, else the reference."""
    return next((name for name in order(op, key, tables.architecture(device)) if name in able), REFERENCE)


def order(op: str, key: str, architecture: str) -> list[str]:
    """The backends of an op, the best one first.

    Raises:
        tables.TableError: the table has an entry that is no order.
    """
    entry = tables.lookup(op, key, architecture, {tables.ORDER: list(DEFAULT)})
    if tables.ORDER not in entry:
        raise tables.TableError(f"{tables.place(architecture, op, key)}: must have an order of backends, has {entry}")
    found: list[str] = entry[tables.ORDER]
    return found
