"""The prepared ops at HiFuse Small's four stage shapes, 224 x 224: `python -m benchmarks.prepared_ops`.

Engines, from the same weights in the case's dtype: the reference (plain PyTorch, eager) and the compiled library. The library
writes to a map that is there, as it does in the network; the reference returns a fresh one, because to `out` it would copy.
They take turns, after their outputs were checked against the reference in float64: by the tolerance rule of
`hifuse_fast.testing`, or by the bound of the algorithm that "auto" chose. A wrong one is not timed.

The floor is the larger of arithmetic (the matrix products and convolutions of the definition) over the best matrix product of
this run, and bytes (maps and plain weights once) over its copy rate. For the mixer that is the arithmetic of the *direct*
convolution: Winograd's algorithms multiply 4/9 or 1/4 as often, Strassen's 7/8, and so may pass 100 % of the floor. Maps and
weights that stay in the cache can beat a floor of memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import click
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hifuse_fast import ops
from hifuse_fast.bench import machine, options, table, turns
from hifuse_fast.bench.rows import Row
from hifuse_fast.bench.turns import DTYPES
from hifuse_fast.ops.prepared.base import PreparedOp
from hifuse_fast.ops.prepared.linear import bounds as linear_bounds
from hifuse_fast.ops.prepared.mixer import bounds as mixer_bounds
from hifuse_fast.testing import RULE, Bound, errors, relative_error
from hifuse_fast.tuning.calls import STAGES

SUITE = "prepared_ops"
ENGINES = ("reference", "native")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Op:
    """A prepared op as the network uses it."""

    kind: str  #: its folder
    weights: dict[str, tuple[int, ...]]
    maps: Sequence[int]  #: their channels
    residual: int = 0  #: its channels; 0 for none
    options: dict[str, Any] = field(default_factory=dict)

    def prepare(self, weights: dict[str, Tensor], dtype: torch.dtype, backend: str) -> PreparedOp:
        """Packed for `backend`."""
        prepare: Callable[..., PreparedOp] = getattr(ops, f"prepare_{self.kind}")
        return prepare(**weights, **self.options, dtype=dtype, backend=backend)


def stage_ops(c: int) -> dict[str, Op]:
    """The ops of a stage of `c` channels."""
    local = {"filters": (c, 3, 3), "filter_bias": (c,), "weight": (c, c), "bias": (c,)}
    gates = {"filters": (2, 7, 7), "filter_bias": (1,), "squeeze": (c // 16, c), "expand": (c, c // 16)}
    mlp = {"expand": (12 * c, 3 * c), "expand_bias": (12 * c,), "project": (c, 12 * c), "project_bias": (c,)}
    return {
        "linear_qkv": Op("linear", {"weight": (3 * c, c), "bias": (3 * c,)}, [c], options={"norm": "row"}),
        "linear_output": Op("linear", {"weight": (c, c), "bias": (c,)}, [c], residual=c, options={"activation": "gelu"}),
        "local_block": Op("local_block", local, [c]),
        "gated_concat": Op("gated_concat", {**gates, "scale": (3 * c,), "shift": (3 * c,)}, [c, c, c]),
        "mixer": Op("mixer", {"weight": (3 * c, 3 * c, 3, 3)}, [3 * c]),
        "mlp": Op("mlp", mlp, [3 * c], residual=c),
    }


NAMES = tuple(stage_ops(16))


@dataclass(frozen=True)
class Case:
    """One op, stage, batch size and dtype."""

    op_name: str
    stage: int
    batch: int
    dtype: str
    mode: str = "forward"

    @property
    def op(self) -> Op:
        return stage_ops(STAGES[self.stage][1])[self.op_name]

    @property
    def name(self) -> str:
        """The op and its (first) map, as the results file names them."""
        side, _, _ = STAGES[self.stage]
        return f"{self.op_name} {side}x{side}x{self.op.maps[0]}"

    def tensors(self, make: Callable[..., Tensor]) -> Inputs:
        """What `make` makes of the shapes."""
        side, _, _ = STAGES[self.stage]
        weights = {name: make(*shape) for name, shape in self.op.weights.items()}
        maps = [make(self.batch, side, side, c) for c in self.op.maps]
        return Inputs(weights, maps, {"residual": make(self.batch, side, side, c)} if (c := self.op.residual) else {})

    @cached_property
    def _work(self) -> tuple[float, float]:
        """Operations and bytes, of the reference run without data."""
        inputs = self.tensors(partial(torch.empty, device="meta", dtype=DTYPES[self.dtype]))
        with FlopCounterMode(display=False) as counter:
            out = inputs.run(self.op.prepare(inputs.weights, DTYPES[self.dtype], "reference"))
        moved = sum(x.nbytes for x in (out, *inputs.weights.values(), *inputs.maps, *inputs.named.values()))
        return float(counter.get_total_flops()), float(moved)

    @property
    def flop(self) -> float:
        """Of matrix products and convolutions, two a multiply-add."""
        return self._work[0]

    @property
    def moved(self) -> float:
        """Bytes: each map and plain weight once."""
        return self._work[1]


@dataclass(frozen=True)
class Inputs:
    """Weights, maps and residual of a case."""

    weights: dict[str, Tensor]
    maps: list[Tensor]
    named: dict[str, Tensor]

    def run(self, op: PreparedOp, out: Tensor | None = None) -> Tensor:
        """The op on the maps."""
        result: Tensor = op(*self.maps, **self.named, out=out)
        return result

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same values in `dtype`."""
        weights, named = ({name: x.to(dtype) for name, x in group.items()} for group in (self.weights, self.named))
        return Inputs(weights, [x.to(dtype) for x in self.maps], named)


def all_cases(names: Iterable[str], stages: Iterable[int], batches: Iterable[int]) -> list[Case]:
    """The cases in the order of the table."""
    return [Case(*values) for values in itertools.product(names, stages, batches, machine.usual_dtypes(CPU))]


def make_inputs(case: Case) -> Inputs:
    """Seeded normal values; a weight keeps the variance of what it multiplies, about."""
    generator = torch.Generator().manual_seed(case.stage)
    inputs = case.tensors(partial(torch.randn, generator=generator))
    for weight in inputs.weights.values():
        weight.div_(math.prod(weight.shape[1:]) ** 0.5)
    return inputs.to(DTYPES[case.dtype])


def candidates(case: Case, engines: Iterable[str]) -> dict[str, turns.Candidate]:
    """The engines on the case, checked."""
    inputs, dtype = make_inputs(case), DTYPES[case.dtype]
    wide = inputs.to(torch.float64)
    exact = wide.run(case.op.prepare(wide.weights, torch.float64, "reference"))
    eager = inputs.run(case.op.prepare(inputs.weights, dtype, "reference"))
    found = {}
    for name in engines:
        op = case.op.prepare(inputs.weights, dtype, name)
        call = partial(inputs.run, op, None if name == "reference" else torch.full_like(eager, float("nan")))
        found[name] = turns.Candidate(call, *check(bound_of(case.op.kind, op, dtype), call(), eager, exact))
    return found


def bound_of(kind: str, op: PreparedOp, dtype: torch.dtype) -> Bound:
    """The bound of the algorithm that the op runs."""
    if kind == "mixer":
        return mixer_bounds.bound(op.options["algorithm"], dtype)
    return linear_bounds.bound(op.options["algorithm"]) if "algorithm" in op.options else RULE


def check(bound: Bound, actual: Tensor, eager: Tensor, exact: Tensor) -> tuple[bool, float]:
    """Whether the output obeys the bound, and its relative error."""
    return errors(actual, eager, exact, bound).ok, relative_error(actual, exact)


def measure(case: Case, *, limits: turns.Limits, budget_s: float) -> list[Row]:
    """Check, then time in turns; a row an engine."""
    return turns.measure(SUITE, case, candidates(case, ENGINES), CPU, limits=limits, budget_s=budget_s)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("benchmarks/results"), help="Folder of the rows.")
@click.option("--ops", "names", default=",".join(NAMES), show_default=True, help="Comma-separated.")
@click.option("--stages", default="1,2,3,4", show_default=True)
@click.option("--batch", default="1,8", show_default=True)
@click.option("--budget", type=click.FloatRange(0), default=1.0, show_default=True, help="Seconds of timing a case.")
def main(*, output: Path, names: str, stages: str, batch: str, budget: float) -> None:
    """Time the prepared CPU ops against plain PyTorch."""
    cases = all_cases(
        options.names("--ops", names, NAMES),
        [int(stage) for stage in options.names("--stages", stages, map(str, STAGES))],
        options.batch_sizes(batch),
    )
    turns.require_native(CPU, *dict.fromkeys(f"prepare_{case.op.kind}" for case in cases))
    limits, found, console = turns.limits(CPU), [], table.console()
    for case in track(cases, "prepared ops", console=console, transient=True):
        found += measure(case, limits=limits, budget_s=budget)
    turns.report(console, found, "prepared ops", output)


if __name__ == "__main__":
    main()
