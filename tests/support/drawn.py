"""Calls drawn from the whole space of options: a seed names a call of some op, on some backend, in some dtype.

A call is a function of tensors by name. It runs three times: on the kernel, in PyTorch in the same dtype, and in PyTorch in
float64 on the same values.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hifuse_fast import ops
from hifuse_fast.backends import select
from hifuse_fast.ops.prepared.linear.bounds import bound as bound_of_linear
from hifuse_fast.ops.prepared.mixer.bounds import bound as bound_of_mixer
from hifuse_fast.testing import NEIGHBOURS, RULE, Bound, assert_within_rule, errors, nan_poisoned_empty
from tests.support.kernels import device_of

SCALES = (1e-30, 1e-20, 1e-10, 1e-6, 1e-4, 1e-2, 1.0, 1.0, 1.0, 1e2, 1e4)
VALUES = ("uniform", "uniform", "uniform", "mean 1000", "constant rows", "zeros")
STRIDES = ("contiguous", "contiguous", "transposed", "channels first", "a part", "expanded")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIMULATED = ("triton", "cuda")  # in an interpreter and an emulation where there is no GPU: small calls
FEWER = 0.75  # the share of Triton's calls that another backend's take the place of: the interpreter is slow
Tensors = dict[str, Tensor]


class Drawn:
    """The call of a seed, and what it was drawn from. Maps by names that begin with "map" are given by place."""

    def __init__(self, seed: int) -> None:
        self.seed, self.random = seed, random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.op = self.random.choice(list(DRAWS))
        self.backend, self.dtype = self.random.choice(served(self.op))
        if self.backend == "triton" and self.random.random() < FEWER:
            self.op = self.random.choice(PREPARED)
            self.backend, self.dtype = self.random.choice([pair for pair in served(self.op) if pair[0] != "triton"])
        self.scale, self.values = self.random.choice(SCALES), self.random.choice(VALUES)
        if self.dtype == torch.float16:  # sums stay within its range
            self.scale, self.values = min(self.scale, 1.0), self.values.replace("mean 1000", "uniform")
        self.widest, self.side = (20, 4) if self.backend in SIMULATED else (70, 12)
        self.tensors: Tensors = {}  # float64
        self.strides: dict[str, str] = {}  # of the maps that need not be contiguous
        self.single: set[str] = set()  # parameters in float32 whatever the dtype
        self.fixed: set[str] = set()  # tensors without a gradient
        self.options: dict[str, Any] = {}
        self.prepared = self.op.startswith("prepare_")
        DRAWS[self.op](self)
        self.gradients = not self.prepared and self.coin()

    def __str__(self) -> str:
        shapes = {name: list(x.shape) for name, x in self.tensors.items()}
        return (
            f"seed {self.seed}: {self.op} on {self.backend} in {self.dtype}, {self.values}, scale {self.scale}, "
            f"{self.options}, {shapes}, strides {self.strides}, in float32 {sorted(self.single)}, gradients {self.gradients}"
        )

    # ---- What an op draws

    def coin(self) -> bool:
        return self.random.random() < 0.5

    def option(self, name: str, *choices: Any) -> Any:
        self.options[name] = self.random.choice(choices)
        return self.options[name]

    def channels(self) -> int:
        return min(self.widest, self.random.choice((1, 3, 7, 8, 16, 32, self.random.randint(1, self.widest))))

    def size(self, even: bool = False) -> tuple[int, int, int]:
        height, width = (self.random.randint(1, self.side) * (1 + even) for _ in range(2))
        return self.random.choice((1, 1, 2, 3)), height, width

    def uniform(self, *shape: int) -> Tensor:
        return 2 * torch.rand(shape, generator=self.generator, dtype=torch.float64) - 1

    def map(self, name: str, *shape: int) -> None:
        x, some = self.uniform(*shape), (shape[1] + 1) // 2
        if self.values == "mean 1000":
            self.tensors[name] = x + 1000
            return
        if self.values == "constant rows":
            x[:, :some] = x[:, :some, :, :1]
        elif self.values == "zeros":
            x[:, :some] = 0
        self.tensors[name] = x * self.scale

    def strided(self, name: str, *shape: int) -> None:
        self.map(name, *shape)
        self.strides[name] = self.random.choice(STRIDES)

    def vectors(self, n: int, *names: str, mixed: bool = False) -> None:
        self.tensors |= {name: self.uniform(n) for name in names}
        if mixed and self.coin():  # all of an op or none: PyTorch's norms on a CPU take no others
            self.single |= set(names)

    def weight(self, name: str, *shape: int) -> None:
        self.tensors[name] = self.uniform(*shape) * (3 / math.prod(shape[1:])) ** 0.5

    def residual(self, *shape: int) -> None:
        if self.coin():
            self.map("residual", *shape)

    # ---- The call

    def run(self, dtype: torch.dtype, backend: str, moved: int = 0) -> Tensors:
        """The results by name, computed in `dtype` on the kernel's values, or on those of a neighbour by its number."""
        given = {name: self._placed(name, x, dtype, backend, moved) for name, x in self.tensors.items()}
        places = [name for name in given if name.startswith(("map", "residual"))]
        wanted = [name for name in given if self.gradients and name not in self.fixed]
        for name in wanted:
            given[name].requires_grad_()
        weights = {name: x for name, x in given.items() if name not in places}
        maps, named = [given[name] for name in places if name != "residual"], {}
        if "residual" in given:
            named["residual"] = given["residual"]
        make = getattr(ops, self.op)
        if self.prepared:
            made = make(**weights, **self.options, dtype=dtype, backend=backend)
            result = made(*maps, **named)
            self.algorithm = made.options.get("algorithm", "direct")
        else:
            call = _concat_norm if self.op == "concat_norm" else make
            result = call(*maps, **weights, **named, **self.options, backend=backend)
        results = {f"output {i}": x for i, x in enumerate(result if isinstance(result, tuple) else (result,))}
        if wanted:
            grad = torch.rand(result.shape, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64) - 0.5
            grads = torch.autograd.grad(
                result,
                [given[name] for name in wanted],
                self._gradient(grad, moved).to(result),
                allow_unused=True,
                materialize_grads=True,
            )
            results |= {f"gradient of {name}": x for name, x in zip(wanted, grads, strict=True)}
        return {name: x.detach().cpu() for name, x in results.items()}

    def _placed(self, name: str, x: Tensor, dtype: torch.dtype, backend: str, moved: int) -> Tensor:
        """The tensor as the kernel gets it in its dtype, in `dtype`, with its strides."""
        single = name in self.single
        kept = torch.float32 if single and self.dtype != torch.float64 else self.dtype
        x = x.to(kept).double()
        x = self._moved(name, x, kept, moved)
        x = x.to(torch.float32 if single and dtype != torch.float64 else dtype).to(device_of(backend))
        return restride(x, self.strides.get(name, "contiguous")).detach()

    def _gradient(self, grad: Tensor, moved: int) -> Tensor:
        """What the gradient of the result is for a neighbour: the same, but in float64 one rounding away.

        In other dtypes PyTorch's own error is known. In float64 it is the measure, and stands for the exact result: what
        a rounding of the gradient makes of the others is the least that it can err.
        """
        grad = grad.to(self.dtype).double()
        return self._moved("gradient", grad, self.dtype, moved, most=1) if self.dtype == torch.float64 else grad

    def _moved(self, name: str, x: Tensor, kept: torch.dtype, moved: int, most: int = 3) -> Tensor:
        """The float64 values of a tensor that is `kept` in some dtype, or of a neighbour: 1 to `most` roundings away."""
        if not moved:
            return x
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {moved} {name}".encode()))
        signs = (torch.rand(x.shape, generator=generator, dtype=torch.float64) - 0.5).sign()
        return (x * (1 + (1 + moved % most) * torch.finfo(kept).eps * signs)).to(kept).double()

    def bound(self) -> Bound:
        """Of the algorithm that the kernel took."""
        if self.op == "prepare_mixer":
            return bound_of_mixer(self.algorithm, self.dtype)
        return bound_of_linear(self.algorithm) if self.op in ("prepare_linear", "prepare_mlp") else RULE

    def check(self) -> None:
        """Raise AssertionError unless every result obeys the rule, here or with PyTorch's error of the `NEIGHBOURS`."""
        with nan_poisoned_empty():
            actual = self.run(self.dtype, self.backend)
        bound = self.bound() if self.prepared else RULE
        eager, exact = self.run(self.dtype, "reference"), self.run(torch.float64, "reference")
        found = {name: errors(value, eager[name], exact[name], bound) for name, value in actual.items()}
        if all(each.ok for each in found.values()):
            return
        own = self.errors_nearby(exact)
        for name, value in actual.items():
            besides = bound.errors * max(0.0, own[name] - found[name].pytorch)
            assert_within_rule(value, eager[name], exact[name], what=name, besides=besides, bound=bound)

    def errors_nearby(self, exact: Tensors) -> dict[str, float]:
        """PyTorch's largest error in the neighbourhood, by result; see `hifuse_fast.testing.NEIGHBOURS`."""
        found = dict.fromkeys(exact, 0.0)
        for i in range(1, NEIGHBOURS + 1):
            moved = self.run(torch.float64, "reference", moved=i)
            values = exact if self.dtype == torch.float64 else self.run(self.dtype, "reference", moved=i)
            for name in found:
                found[name] = max(found[name], (values[name].double() - moved[name]).abs().max().item())
        return found


def served(op: str) -> list[tuple[str, torch.dtype]]:
    """The backends that run here, with their dtypes; the reference, which is the measure, in float64."""
    found = [("reference", torch.float64)]
    for backend in ("native", "triton", "cuda"):
        for dtype in DTYPES:
            if select.why_not(op, backend, device=device_of(backend), dtype=dtype, head_dim=8, dropout_p=0.0) is None:
                found.append((backend, dtype))
    return found


def restride(x: Tensor, strides: str) -> Tensor:
    """The values of x (of one image for all, where it is expanded) in memory of other strides."""
    if strides == "transposed":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if strides == "channels first":
        return x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    if strides == "a part":
        larger = x.new_full([n + 2 for n in x.shape], float("nan"))
        part = larger[1:-1, 1:-1, 1:-1, 1:-1]
        return part.copy_(x)
    return x[:1].expand(x.shape) if strides == "expanded" else x


def _concat_norm(*maps: Tensor, weight: Tensor, bias: Tensor, eps: float, backend: str, **gates: Tensor) -> Tensor:
    named = [gates.get(f"gate{i}") for i in range(len(maps))]
    return ops.concat_norm(*maps, weight=weight, bias=bias, gates=named if gates else None, eps=eps, backend=backend)


# ---- The ops -----------------------------------------------------------------------------------------------------------

EPS = (1e-6, 1e-5, 1e-3)


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
        d.option("algorithm", "auto", "direct", *(() if d.backend in SIMULATED else ("winograd2", "winograd4")))


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
    window = d.option("window_size", 1, 2, 3, *(() if d.backend in SIMULATED else (5, 7)))
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
    if d.backend not in SIMULATED and d.random.random() < 0.1:
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
