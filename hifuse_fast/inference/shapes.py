"""The shapes of the plain tensors that each function of `fold` gives, from the options of the network alone."""

from __future__ import annotations

import re

from hifuse_fast.blocks import EXPANSION, SQUEEZE
from hifuse_fast.options import STAGES, HiFuseOptions

Shapes = dict[str, tuple[int, ...]]


def plain_shapes(options: HiFuseOptions, folding: str, module: str) -> Shapes:
    """Names and shapes of `fold.<folding>(weights, module)` for a network of these options."""
    o, stage = options, _stage(folding, module)
    dim, before = o.dims[stage], o.dims[stage - 1]
    mixed, hidden, squeezed = 3 * dim, EXPANSION * 3 * dim, max(1, dim // SQUEEZE)
    others: dict[str, Shapes] = {
        "stem": {"weight": (2, dim, o.in_chans, 4, 4), **dict.fromkeys(("bias", "scale", "shift"), (2, dim))},
        "local_block": {"filters": (dim, 3, 3), "filter_bias": (dim,), **_linear(dim, dim)},
        "attention": {
            "bias_table": ((2 * o.window_size - 1) ** 2, o.num_heads[stage]),
            **({"qkv_bias": (3 * dim,)} if o.qkv_bias else {}),
        },
        "gated_concat": {
            **{"filters": (2, 7, 7), "filter_bias": (1,), "squeeze": (squeezed, dim), "expand": (dim, squeezed)},
            **{"scale": (mixed,), "shift": (mixed,)},
        },
        "mixer": {"weight": (mixed, mixed if o.mixer == "dense" else 1, 3, 3)},
        "mlp": {"expand": (hidden, mixed), "expand_bias": (hidden,), "project": (dim, hidden), "project_bias": (dim,)},
    }
    if folding in others:
        return others[folding]
    columns = {"qkv": 3 * dim, "head": o.num_classes}.get(folding, dim)
    depth = {"downsample": 4 * before, "merge": 4 * before, "first_fusion": 2 * dim, "fusion": 3 * dim}.get(folding, dim)
    return _linear(columns, before if module.endswith(".Updim") else depth)


def _linear(columns: int, depth: int) -> Shapes:
    return {"weight": (columns, depth), "bias": (columns,)}


def _stage(folding: str, module: str) -> int:
    """The number of the stage, from 0, that a folding belongs to: the stem to the first, the head to the last."""
    if not module:
        return 0 if folding == "stem" else STAGES - 1
    found = re.match(r"(stages\.|downsample_layers\.|layers|fu)(\d)", module)
    assert found is not None, module
    return int(found[2]) - (found[1] in ("layers", "fu"))
