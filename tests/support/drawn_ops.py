"""What a drawn call of each op is made of: its maps, weights and options, as `drawn.Drawn` draws them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from hifuse_fast import ops

if TYPE_CHECKING:
    from tests.support.drawn import Drawn

EPS = (1e-6, 1e-5, 1e-3)


def concat_norm(*maps: Tensor, weight: Tensor, bias: Tensor, eps: float, backend: str, **gates: Tensor) -> Tensor:
    named = [gates.get(f"gate{i}") for i in range(len(maps))]
    return ops.concat_norm(*maps, weight=weight, bias=bias, gates=named if gates else None, eps=eps, backend=backend)


def _batch_norm(d: Drawn) -> None:
    pool, c = d.option("pool", False, True), d.channels()
    batch, height, width = d.size(pool)
    height += batch * height * width == 1
    d.strided("map", batch, height, width, c)
    statistics = ("running_mean", "running_var") if not d.option("training", False, True) or d.coin() else ()
    d.vectors(c, "weight", "bias", *statistics, mixed=True)
    if statistics:
        d.tensors["running_var"] = d.tensors["running_var"].abs() + 0.5
        d.fixed |= set(statistics)
    d.option("activation", "none", "relu", "gelu", "sigmoid")
    d.option("eps", *EPS)
    d.residual(batch, height // (1 + pool), width // (1 + pool), c)


def _draw_concat_norm(d: Drawn) -> None:
    count, c, (batch, height, width) = d.random.choice((2, 3)), d.channels(), d.size()
    for i in range(count):
        d.strided(f"map{i}", batch, height, width, c)
        gate = d.random.choice((None, (batch, height, width, 1), (batch, 1, 1, c)))
        if gate is not None:
            d.tensors[f"gate{i}"] = d.uniform(*gate).abs()
    d.vectors(count * c, "weight", "bias", mixed=True)
    d.option("eps", *EPS)


def _depthwise_norm(d: Drawn) -> None:
    c = d.channels()
    d.strided("map", *d.size(), c)
    d.weight("filters", c, 1, 3, 3)
    d.vectors(c, "filter_bias", "weight", "bias", mixed=True)
    d.option("eps", *EPS)


def _layer_norm(d: Drawn) -> None:
    c = d.channels()
    d.strided("map", *d.size(), c)
    d.vectors(c * (4 if d.option("rows", "pixels", "patches") == "patches" else 1), "weight", "bias", mixed=True)
    d.option("eps", *EPS)


def _linear(d: Drawn) -> None:
    patches, c, n, (batch, height, width) = (
        d.option("rows", "pixels", "patches") == "patches",
        d.channels(),
        d.channels(),
        d.size(),
    )
    d.strided("map", batch, height, width, c)
    d.weight("weight", n, c * (4 if patches else 1))
    if d.coin():
        d.vectors(n, "bias")
    if d.coin():
        d.vectors(c * (4 if patches else 1), "norm_weight", "norm_bias", mixed=True)
    d.option("activation", "none", "gelu")
    d.option("eps", *EPS)
    d.residual(batch, *((height + 1) // 2, (width + 1) // 2) if patches else (height, width), n)


def _max_mean(d: Drawn) -> None:
    d.strided("map", *d.size(), d.channels())
    d.option("over", "channels", "pixels")


def _mixer(d: Drawn) -> None:
    dense = d.backend == "native" and not d.prepared  # of one channel each convolution is depthwise
    c = max(d.channels(), 1 + dense)
    (d.map if d.prepared else d.strided)("map", *d.size(), c)
    d.weight("weight", c, c if dense else d.random.choice((1, c)), 3, 3)
    if d.prepared:
        d.option("algorithm", "auto", "direct", *(() if d.simulated else ("winograd2", "winograd4")))


def _mlp(d: Drawn) -> None:
    k, h, n, size = d.channels(), d.channels(), d.channels(), d.size()
    (d.map if d.prepared else d.strided)("map", *size, k)
    if not d.prepared:
        d.weight("expand_weight", h, k)
        d.weight("project_weight", n, h)
        return
    d.weight("expand", h, k)
    d.vectors(h, "expand_bias")
    d.weight("project", n, h)
    d.vectors(n, "project_bias")
    d.option("algorithm", "auto", "direct")
    d.residual(*size, n)


def _window_attention(d: Drawn) -> None:
    window = d.option("window_size", 1, 2, 3, *(() if d.simulated else (5, 7)))
    d.option("shift_size", *range(window))
    heads, head_dim = d.option("num_heads", 1, 2, 3), d.random.choice((8, 16, 24) if d.backend == "cuda" else (8, 9, 16, 17))
    (d.map if d.prepared else d.strided)("map", *d.size(), 3 * heads * head_dim)
    d.tensors["bias_table"] = d.uniform((2 * window - 1) ** 2, heads)
    if d.coin():
        d.vectors(3 * heads * head_dim, "qkv_bias")
    d.option("scale", None, 0.3)
    if d.prepared:
        d.options["head_dim"] = head_dim


def _prepare_gated_concat(d: Drawn) -> None:
    c, squeezed, size = d.channels(), d.random.randint(1, 8), d.size()
    for i in range(3):
        d.map(f"map{i}", *size, c)
    d.weight("filters", 2, 7, 7)
    d.vectors(1, "filter_bias")
    d.weight("squeeze", squeezed, c)
    d.weight("expand", c, squeezed)
    d.vectors(3 * c, "scale", "shift")
    d.option("double_sigmoid", False, True)
    d.option("eps", *EPS)


def _prepare_linear(d: Drawn) -> None:
    patches, pool = d.option("rows", "pixels", "patches") == "patches", d.coin()
    widths = [d.channels() for _ in range(1 if patches else d.random.choice((1, 1, 2, 3)))]
    pool = d.option("pool", False, not patches and pool)
    if not d.simulated and d.random.random() < 0.1:
        widths[0] += 384 - sum(widths)
    n, (batch, height, width) = d.random.choice((d.channels(), 64)), d.size(patches or pool)
    for i, c in enumerate(widths):
        d.map(f"map{i}", batch, height, width, c)
    d.weight("weight", n, sum(widths) * (4 if patches else 1))
    d.vectors(n, "bias")
    d.option("norm", None, "row", "pixel" if patches else "row")
    d.option("activation", "none", "gelu", "relu")
    d.option("algorithm", "auto", "direct")
    d.option("eps", *EPS)
    half = 1 + (patches or pool)
    d.residual(batch, height // half, width // half, n)


def _prepare_local_block(d: Drawn) -> None:
    c = d.channels()
    d.map("map", *d.size(), c)
    d.weight("filters", c, 3, 3)
    d.vectors(c, "filter_bias", "bias")
    d.weight("weight", c, c)
    d.option("eps", *EPS)


def _prepare_stem(d: Drawn) -> None:
    c, planes, (batch, height, width) = d.channels(), d.random.choice((1, 3, 4)), d.size()
    d.strided("map", batch, planes, 4 * height, 4 * width)
    d.weight("weight", 2, c, planes, 4, 4)
    d.tensors["weight"] *= c**0.5
    for name in ("bias", "scale", "shift"):
        d.tensors[name] = d.uniform(2, c)
    d.options["eps"] = (1e-5, 1e-6)


DRAWS: dict[str, Callable[[Drawn], None]] = {
    "batch_norm": _batch_norm,
    "concat_norm": _draw_concat_norm,
    "depthwise_norm": _depthwise_norm,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "max_mean": _max_mean,
    "mixer": _mixer,
    "mlp": _mlp,
    "window_attention": _window_attention,
    "prepare_gated_concat": _prepare_gated_concat,
    "prepare_linear": _prepare_linear,
    "prepare_local_block": _prepare_local_block,
    "prepare_mixer": _mixer,
    "prepare_mlp": _mlp,
    "prepare_stem": _prepare_stem,
    "prepare_window_attention": _window_attention,
}
PREPARED = [op for op in DRAWS if op.startswith("prepare_")]
