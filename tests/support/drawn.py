"""Calls drawn from the whole space of options: a seed names a call of some op, on some backend, in some dtype.

A call is a function of tensors by name. It runs three times: on the kernel, in PyTorch in the same dtype, and in PyTorch in
float64 on the same values.
"""

from __future__ import annotations

import math
import random
import zlib
from typing import Any

import torch
from torch import Tensor

from hifuse_fast import ops
from hifuse_fast.backends import select
from hifuse_fast.ops.prepared.linear.bounds import bound as bound_of_linear
from hifuse_fast.ops.prepared.mixer.bounds import bound as bound_of_mixer
from hifuse_fast.testing import NEIGHBOURS, RULE, Bound, assert_within_rule, errors, nan_poisoned_empty
from tests.support.drawn_ops import DRAWS, PREPARED, concat_norm
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
        self.simulated = self.backend in SIMULATED
        self.widest, self.side = (20, 4) if self.simulated else (70, 12)
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
            call = concat_norm if self.op == "concat_norm" else make
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
