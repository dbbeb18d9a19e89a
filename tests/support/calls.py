"""A small call of every op: its maps and weights by name, for the tests that ask the same of all ops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from hifuse_fast import ops
from hifuse_fast.backends import select
from hifuse_fast.backends.native import library
from hifuse_fast.backends.select import OPS
from hifuse_fast.ops.prepared.linear.bounds import STRASSEN
from hifuse_fast.ops.prepared.mixer.bounds import bound
from hifuse_fast.testing import RULE, Bound
from tests.support.kernels import kernels, uniform
from tests.support.prepared import DTYPES, matrix

Tensors = dict[str, Tensor]
B, H, W, C = 4, 6, 16, 8


@dataclass(frozen=True)
class Call:
    """`run(backend, tensors)` calls the op on tensors of one dtype. Biases are zeros, so that zero maps give zeros."""

    op: str
    run: Callable[[str, Tensors], Any]
    maps: Tensors
    weights: Tensors
    kernels: tuple[str, ...] = ("native", "triton")
    bound: Callable[[torch.dtype], Bound] = lambda dtype: RULE
    images_apart: bool = True
    make: Callable[[str, Tensors], Any] | None = None  #: of a prepared op: makes it of the tensors

    def outputs(self, backend: str, tensors: Tensors) -> list[Tensor]:
        found = self.run(backend, tensors)
        return list(found) if isinstance(found, tuple) else [found]


def _map(name: str = "x", height: int = H, width: int = W, channels: int = C) -> Tensor:
    return uniform(name, B, height, width, channels)


def _function(op: str, maps: Tensors, weights: Tensors, bound: Any = None, images_apart: bool = True, **options: Any) -> Call:
    def run(backend: str, tensors: Tensors) -> Any:
        first, *_ = maps
        named = {name: tensor for name, tensor in tensors.items() if name != first}
        return getattr(ops, op)(tensors[first], **named, **options, backend=backend)

    kernels = OPS[op]
    if op == "mixer" and weights["weight"].shape[1] == 1:
        kernels = ("triton", "cuda")
    return Call(op, run, maps, weights, kernels, bound or (lambda _: RULE), images_apart)


def _concat(tensors: Tensors, backend: str) -> Tensor:
    maps, gates = [tensors[name] for name in "abc"], [tensors["space_gate"], tensors["channel_gate"], None]
    return ops.concat_norm(*maps, weight=tensors["weight"], bias=tensors["bias"], gates=gates, backend=backend)


def _prepared(op: str, maps: Tensors, weights: Tensors, kernels: Any = None, bound: Any = None, **options: Any) -> Call:
    def make(backend: str, tensors: Tensors) -> Any:
        dtype = tensors[next(iter(maps))].dtype
        own = {name: tensor for name, tensor in tensors.items() if name in weights}
        chosen = {name: option for name, option in options.items() if backend != "reference" or name != "algorithm"}
        return getattr(ops, f"prepare_{op}")(**own, **chosen, dtype=dtype, backend=backend)

    def run(backend: str, tensors: Tensors) -> Any:
        given = {name: tensors[name] for name in maps}
        residual = {"residual": given.pop("residual")} if "residual" in given else {}
        return make(backend, tensors)(*given.values(), **residual)

    usual = tuple(sorted(OPS[f"prepare_{op}"], key=("native", "triton", "cuda").index))
    return Call(f"prepare_{op}", run, maps, weights, kernels or usual, bound or (lambda _: RULE), make=make)


def _mixer(algorithm: str) -> Call:
    kernels = OPS["prepare_mixer"] if algorithm == "direct" else ("native",)
    rule = "winograd2" if algorithm == "direct" else algorithm  # the vendor's, on Triton, errs more
    weights = {"weight": matrix("weight", C, C, 3, 3)}
    return _prepared("mixer", {"z": _map()}, weights, kernels, lambda dtype: bound(rule, dtype), algorithm=algorithm)


def _ones(count: int) -> Tensor:
    return torch.ones_like(uniform("ones", count))


def _zeros(*shape: int) -> Tensor:
    return torch.zeros_like(uniform("zeros", *shape))


TABLE = {"bias_table": uniform("table", 49, 2)}
NORM = {"weight": 1 + uniform("weight", C, scale=0.5), "bias": _zeros(C)}
STATISTICS = {"running_mean": _zeros(C), "running_var": _ones(C)}
NORM_LINEAR = {"norm_weight": _ones(C), "norm_bias": _zeros(C)}
QKV = {"qkv": _map("qkv", 5, 6, 48)}
MLP = {"expand_weight": matrix("expand", 20, C), "project_weight": matrix("project", C, 20)}
HIDDEN = {"expand": matrix("expand", 20, C), "expand_bias": _zeros(20), "project": matrix("project", C, 20)}
GATES = {"space_gate": uniform("space", B, H, W, 1), "channel_gate": uniform("channel", B, 1, 1, C)}


# Triton's interpreter adds up the values of a channel one after the other, which a GPU does not.
def _columns(dtype: torch.dtype) -> Bound:
    return Bound(largest=4e-6) if dtype == torch.float32 else RULE


FUNCTIONS = {
    "attention": _function("window_attention", QKV, TABLE, num_heads=2, window_size=4),
    "shifted attention": _function(
        "window_attention", QKV, {**TABLE, "qkv_bias": uniform("qkv_bias", 48)}, num_heads=2, window_size=4, shift_size=2
    ),
    "layer norm": _function("layer_norm", {"x": _map()}, NORM),
    "linear": _function(
        "linear", {"x": _map(), "residual": _map("residual")}, {"weight": matrix("w", C, C), "bias": _zeros(C)},
        activation="gelu",
    ),
    "norm, linear": _function("linear", {"x": _map()}, {"weight": matrix("w", 12, C), **NORM_LINEAR}),
    "batch norm": _function("batch_norm", {"x": _map()}, {**NORM, **STATISTICS}, training=False, activation="relu", pool=True),
    "batch norm, gelu": _function("batch_norm", {"x": _map()}, {**NORM, **STATISTICS}, training=False, activation="gelu"),
    "batch norm, sigmoid": _function("batch_norm", {"x": _map()}, {**NORM, **STATISTICS}, training=False, activation="sigmoid"),
    "batch norm, training": _function(
        "batch_norm", {"x": _map()}, NORM, _columns, images_apart=False, training=True, activation="relu"
    ),
    "largest channel": _function("max_mean", {"x": _map()}, {}, over="channels"),
    "largest pixel": _function("max_mean", {"x": _map()}, {}, over="pixels"),
    "depthwise norm": _function(
        "depthwise_norm", {"x": _map()}, {"filters": matrix("f", C, 1, 3, 3), "filter_bias": _zeros(C), **NORM}
    ),
    "concat norm": Call(
        "concat_norm", lambda backend, tensors: _concat(tensors, backend), {**{name: _map(name) for name in "abc"}, **GATES},
        {"weight": _ones(3 * C), "bias": _zeros(3 * C)}, OPS["concat_norm"],
    ),
    "mixer": _function("mixer", {"z": _map()}, {"weight": matrix("weight", C, C, 3, 3)}, lambda d: bound("winograd2", d)),
    "depthwise mixer": _function("mixer", {"z": _map()}, {"weight": matrix("weight", C, 1, 3, 3)}),
    "mlp": _function("mlp", {"u": _map()}, MLP),
}  # fmt: skip

PREPARED = {
    "prepared attention": _prepared("window_attention", QKV, TABLE, head_dim=8, num_heads=2, window_size=4, shift_size=1),
    **{f"mixer, {name}": _mixer(name) for name in ("direct", "winograd2", "winograd4")},
    "prepared depthwise mixer": _prepared("mixer", {"z": _map()}, {"weight": matrix("weight", C, 1, 3, 3)}),
    **{
        f"linear, {name}": _prepared(
            "linear", {"x": _map(), "residual": _map("residual", H // 2, W // 2)},
            {"weight": matrix("w", C, C), "bias": _zeros(C)}, activation=name, pool=True,
        )
        for name in ("none", "gelu", "relu")
    },
    "prepared norm, linear": _prepared(
        "linear", {"x": _map()}, {"weight": matrix("w", C, 4 * C), "bias": _zeros(C)}, rows="patches", norm="pixel"
    ),
    "linear, Strassen": _prepared(
        "linear", {"x": _map("deep", 3, W, 384)}, {"weight": matrix("w", 64, 384), "bias": _zeros(64)}, ("native",),
        lambda dtype: STRASSEN if dtype == torch.float32 else RULE, activation="gelu",
    ),
    "local block": _prepared(
        "local_block", {"x": _map()},
        {"filters": matrix("f", C, 3, 3), "filter_bias": _zeros(C), "weight": matrix("w", C, C), "bias": _zeros(C)},
    ),
    "prepared mlp": _prepared("mlp", {"u": _map()}, {**HIDDEN, "project_bias": _zeros(C)}),
    "mlp, Strassen": _prepared(
        "mlp", {"u": _map("wide", 3, W, 32)},
        {"expand": matrix("e", 64, 32), "expand_bias": _zeros(64), "project": matrix("p", C, 64), "project_bias": _zeros(C)},
        ("native",), lambda dtype: STRASSEN if dtype == torch.float32 else RULE,
    ),
    "gated concat": _prepared(
        "gated_concat", {"local_map": _map("local"), "global_map": _map("global"), "x": _map()},
        {
            "filters": uniform("filters", 2, 7, 7, scale=0.3), "filter_bias": _zeros(1), "squeeze": matrix("squeeze", 3, C),
            "expand": matrix("expand", C, 3), "scale": _ones(3 * C), "shift": _zeros(3 * C),
        },
    ),
    "stem": _prepared(
        "stem", {"images": uniform("images", B, 3, 12, 4 * W)},
        {"weight": matrix("w", 2, C, 3, 4, 4), "bias": _zeros(2, C), "scale": 1 + _zeros(2, C), "shift": _zeros(2, C)},
        eps=(1e-6, 1e-5),
    ),
}  # fmt: skip


def every_call(calls: dict[str, Call] | None = None) -> list[Any]:
    """Parameters: each call, or each of `calls`, by each backend that has kernels for it, in float32 and bfloat16.

    What Triton computes in float32 is slow: its activations are PyTorch's there.
    """
    found = []
    for name, call in (FUNCTIONS | PREPARED if calls is None else calls).items():
        for kernel in kernels(call.op, *call.kernels):
            for dtype in DTYPES:
                if kernel.values == ("native",) and not _serves_on_cpus(call.op, dtype):
                    continue
                slow = [pytest.mark.slow] if kernel.values == ("triton",) and dtype == torch.float32 else []
                names = f"{name}-{kernel.values[0]}-{dtype}"
                found.append(pytest.param(call, *kernel.values, dtype, marks=[*kernel.marks, *slow], id=names))
    return found


def _serves_on_cpus(op: str, dtype: torch.dtype) -> bool:
    """Whether the compiled library has kernels of this dtype; also where there is no library."""
    reason = select.why_not(op, "native", device=torch.device("cpu"), dtype=dtype, head_dim=8)
    return reason is None or library.lib is None
