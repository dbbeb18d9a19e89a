"""The calls of prepared ops that the frozen HiFuse makes at 224 x 224: see `inference/stages.py`, where each stands.

Needs no Triton.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from torch import Tensor

from hifuse_fast.tuning.calls import STAGES, WINDOW, Call, PreparedCall, all_calls

IN_CHANS, CLASSES = 3, 1000
SQUEEZE = 16  #: reduction of the squeeze-excite
EPS, GLOBAL_EPS = 1e-6, 1e-5


@cache
def frozen_calls() -> tuple[Call, ...]:
    """Every call of a prepared op, stage by stage."""
    made = [_stem()]
    for stage, (side, channels, heads) in STAGES.items():
        made += [*_downsampling(stage, side, channels), _local_block(stage, side, channels)]
        made += [*_global_block(stage, side, channels, heads), *_fusion(stage, side, channels)]
    return (*made, _head())


@cache
def network_calls() -> tuple[Call, ...]:
    """Every call there is: of the ops with gradients, of the prepared ones, of their other algorithms."""
    return all_calls() + frozen_calls() + algorithm_calls()


@cache
def algorithm_calls() -> tuple[Call, ...]:
    """The same by an algorithm that has kernels of its own: they are tuned and reported, and "auto" may come to take it."""
    mixers = [call for call in frozen_calls() if call.op == "prepare_mixer" and call.stage > 1]
    return tuple(replace(call, part="winograd2", options={"algorithm": "winograd2"}, only="triton") for call in mixers)


def _linear(
    part: str, stage: int, n: int, maps: Mapping[str, tuple[int, int, int]], halved: bool = False, **options: Any
) -> PreparedCall:
    """Of maps that lie side by side (but for the residual), or of patches."""
    patches = options.get("rows") == "patches"
    side = next(iter(maps.values()))[0]
    k = sum(shape[2] for name, shape in maps.items() if name != "residual") * (4 if patches else 1)
    out = (side // 2, side // 2, n) if patches or halved else (side, side, n)
    flop = 2.0 * (out[0] ** 2 if patches else side**2) * k * n
    return PreparedCall("prepare_linear", part, stage, maps, {"weight": (n, k), "bias": (n,)}, out, flop, options)


def _stem() -> PreparedCall:
    side, channels, _ = STAGES[1]
    weight, vectors = (2, channels, IN_CHANS, 4, 4), ("bias", "scale", "shift")
    return PreparedCall(
        "prepare_stem", "images", 1, {"images": (4 * side, 4 * side, IN_CHANS)},
        {"weight": weight, **dict.fromkeys(vectors, (2, channels))}, (side, side, 2 * channels),
        2.0 * side**2 * 2 * channels * 16 * IN_CHANS, {"eps": (EPS, GLOBAL_EPS)}, _image_arguments,
    )  # fmt: skip


def _image_arguments(inputs: Mapping[str, Tensor]) -> tuple[list[Tensor], dict[str, Any]]:
    return [inputs["images"].permute(0, 3, 1, 2)], {}


def _downsampling(stage: int, side: int, channels: int) -> list[PreparedCall]:
    """To this stage."""
    if stage == 1:
        return []
    x = {"x": (2 * side, 2 * side, channels // 2)}
    return [
        _linear("downsample", stage, channels, x, rows="patches", norm="pixel", eps=EPS),
        _linear("merge", stage, channels, x, rows="patches", norm="row", eps=GLOBAL_EPS),
    ]


def _local_block(stage: int, side: int, channels: int) -> PreparedCall:
    x, c = (side, side, channels), channels
    parameters = {"filters": (c, 3, 3), "filter_bias": (c,), "weight": (c, c), "bias": (c,)}
    flop = 2.0 * side**2 * c * (c + 9)
    return PreparedCall("prepare_local_block", "local", stage, {"x": x}, parameters, x, flop, {"eps": EPS})


def _global_block(stage: int, side: int, channels: int, heads: int) -> list[PreparedCall]:
    """Every second one is shifted."""
    x = (side, side, channels)
    return [
        _linear("to qkv", stage, 3 * channels, {"x": x}, norm="row", eps=GLOBAL_EPS),
        *(_attention(stage, side, channels, heads, shift) for shift in (0, WINDOW // 2)),
        _linear("output", stage, channels, {"x": x, "residual": x}, activation="gelu"),
    ]


def _attention(stage: int, side: int, channels: int, heads: int, shift: int) -> PreparedCall:
    parameters = {"bias_table": ((2 * WINDOW - 1) ** 2, heads), "qkv_bias": (3 * channels,)}
    options = {"head_dim": channels // heads, "num_heads": heads, "window_size": WINDOW, "shift_size": shift}
    flop = 2 * 2.0 * side**2 * WINDOW**2 * channels  # Q K^T and A V
    maps, out = {"qkv": (side, side, 3 * channels)}, (side, side, channels)
    return PreparedCall("prepare_window_attention", f"shift {shift}", stage, maps, parameters, out, flop, options)


def _fusion(stage: int, side: int, channels: int) -> list[PreparedCall]:
    """Stage 1 has no fused map before."""
    first, c = stage == 1, channels
    x, z = (side, side, c), (side, side, 3 * c)
    inputs = {"x1": x, "x2": x} if first else {"x1": x, "x2": x, "x3": x}
    fused = {"x": (2 * side, 2 * side, c // 2)}
    up = [] if first else [_linear("up", stage, c, fused, halved=True, activation="relu", pool=True)]
    gates = {"filters": (2, 7, 7), "filter_bias": (1,), "squeeze": (c // SQUEEZE, c), "expand": (c, c // SQUEEZE)}
    mlp = {"expand": (12 * c, 3 * c), "expand_bias": (12 * c,), "project": (c, 12 * c), "project_bias": (c,)}
    return [
        _linear("branch", stage, c, {"x": x}),
        *up,
        _linear("fuse", stage, c, inputs, norm="row", eps=EPS, activation="gelu"),
        PreparedCall("prepare_gated_concat", "gates", stage, {"local_map": x, "global_map": x, "x": x},
                     gates | {"scale": (3 * c,), "shift": (3 * c,)}, z, 2.0 * 98 * side**2, {"eps": EPS}),
        PreparedCall("prepare_mixer", "dense", stage, {"z": z}, {"weight": (3 * c, 3 * c, 3, 3)}, z,
                     2.0 * 9 * side**2 * (3 * c) ** 2),
        PreparedCall("prepare_mlp", "with biases", stage, {"u": z} | ({} if first else {"residual": x}), mlp, x,
                     2.0 * side**2 * 12 * c * 4 * c),
    ]  # fmt: skip


def _head() -> PreparedCall:
    return _linear("head", 4, CLASSES, {"x": (1, 1, STAGES[4][1])}, norm="row", eps=EPS)
