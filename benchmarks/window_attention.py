"""Window attention at HiFuse's four stage shapes against its peers: `python -m benchmarks.window_attention`.

Engines, all from the same qkv [B, H, W, 3C] to the same [B, H, W, C]:

- reference: the package's own definition, eager;
- sdpa: F.scaled_dot_product_attention between partition and merge, with bias and shift mask added up to one tensor before the
  timed call. With a backward pass the bias comes from the table inside the call: its gradient is wanted;
- compile: torch.compile(fullgraph=True) of the reference, compiled for each case alone;
- native: the compiled library.

In each case they take turns, after their outputs (and gradients) were checked against float64 by the tolerance rule of
`hifuse_fast.testing`; a wrong one is not timed. The floor is the larger of arithmetic (the two products, and in the backward
the four that follow from them) over the best matrix product of this run, and bytes (each tensor once) over its copy rate.
Softmax is not counted; maps that stay in the cache can beat a floor of memory.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from hifuse_fast.bench import machine, options, table, turns
from hifuse_fast.bench.rows import Row
from hifuse_fast.bench.turns import DTYPES
from hifuse_fast.ops import window_attention
from hifuse_fast.ops.functions.window_attention import reference as definition
from hifuse_fast.testing import errors, relative_error
from hifuse_fast.tuning.calls import MODES, STAGES, WINDOW

SUITE = "window_attention"


@dataclass(frozen=True)
class Case:
    """One shape, dtype and mode."""

    stage: int
    shift: int
    batch: int
    dtype: str
    mode: str

    @property
    def name(self) -> str:
        """The shape as the results file names it."""
        side, channels, heads = STAGES[self.stage]
        return f"{side}x{side}x{channels} h{heads} shift {self.shift}"

    @property
    def flop(self) -> float:
        """Operations: Q K^T and A V; in the backward dV, dA, dQ, dK. Two a multiply-add, no recomputation counted."""
        side, channels, _ = STAGES[self.stage]
        product = 2.0 * self.batch * side**2 * WINDOW**2 * channels
        return product * (2 if self.mode == "forward" else 6)

    @property
    def moved(self) -> float:
        """Bytes: qkv and out once; in the backward qkv, the gradients of out and qkv; the table each time."""
        side, channels, heads = STAGES[self.stage]
        pixel, entries = self.batch * side**2 * channels, (2 * WINDOW - 1) ** 2 * heads
        elements = 4 * pixel + entries if self.mode == "forward" else 11 * pixel + 3 * entries
        return float(elements * DTYPES[self.dtype].itemsize)


@dataclass(frozen=True)
class Inputs:
    """qkv [B, H, W, 3C], table [(2M-1)^2, heads], the gradient of the output [B, H, W, C]."""

    qkv: Tensor
    table: Tensor
    grad: Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same values in `dtype`, as leaves that want a gradient."""
        qkv, bias_table = (x.detach().to(dtype).requires_grad_() for x in (self.qkv, self.table))
        return Inputs(qkv, bias_table, self.grad.to(dtype))


Function = Callable[[Tensor, Tensor], Tensor]
Builder = Callable[[Case, Inputs], Function]


def all_cases(
    stages: Iterable[int], batches: Iterable[int], device: torch.device, shifts: Iterable[int] = (0, 3)
) -> list[Case]:
    """The cases of these stages and batch sizes in the order of the table."""
    dtypes = machine.usual_dtypes(device)
    return [Case(*values) for values in itertools.product(stages, shifts, batches, dtypes, MODES)]


def make_inputs(case: Case, device: torch.device) -> Inputs:
    """Seeded normal values, the table of the size that trained ones have."""
    side, channels, heads = STAGES[case.stage]
    generator = torch.Generator().manual_seed(case.stage)
    qkv = torch.randn(case.batch, side, side, 3 * channels, generator=generator)
    bias_table = 0.5 * torch.randn((2 * WINDOW - 1) ** 2, heads, generator=generator)
    grad = torch.randn(case.batch, side, side, channels, generator=generator)
    return Inputs(*(x.to(device) for x in (qkv, bias_table, grad))).to(DTYPES[case.dtype])


def build_backend(backend: str) -> Builder:
    """The op itself, served by `backend`."""

    def build(case: Case, _: Inputs) -> Function:
        heads = STAGES[case.stage][2]

        def call(qkv: Tensor, bias_table: Tensor) -> Tensor:
            return window_attention(
                qkv, bias_table, num_heads=heads, window_size=WINDOW, shift_size=case.shift, backend=backend
            )  # fmt: skip

        return call

    return build


def build_compile(case: Case, inputs: Inputs) -> Function:
    """The reference, compiled for this case alone."""
    torch.compiler.reset()
    compiled: Function = torch.compile(build_backend("reference")(case, inputs), fullgraph=True, dynamic=False)
    return compiled


def build_sdpa(case: Case, inputs: Inputs) -> Function:
    """Partition, SDPA with an additive mask, merge."""
    side, _, heads = STAGES[case.stage]
    windows = (side // WINDOW) ** 2
    mask = torch.zeros(1, 1, 1, 1, device=inputs.qkv.device)
    if case.shift:
        mask = definition.shift_mask(side, side, WINDOW, case.shift, inputs.qkv.device).repeat(case.batch, 1, 1)[:, None]
    mask = mask.to(inputs.qkv.dtype)

    def additive(bias_table: Tensor) -> Tensor:  # [1 or B windows, heads, N, N]
        return definition.position_bias(bias_table, WINDOW) + mask

    made_before = additive(inputs.table.detach()).contiguous() if case.mode == "forward" else None

    def call(qkv: Tensor, bias_table: Tensor) -> Tensor:
        x = qkv.roll((-case.shift, -case.shift), (1, 2)) if case.shift else qkv
        q, k, v = (y.flatten(0, 1) for y in definition.partition(x, WINDOW, heads))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=additive(bias_table) if made_before is None else made_before)
        out = definition.merge(out.unflatten(0, (-1, windows)), side, side, WINDOW)
        return out.roll((case.shift, case.shift), (1, 2)) if case.shift else out.contiguous()

    return call


ENGINES: dict[str, Builder] = {
    "reference": build_backend("reference"),
    "sdpa": build_sdpa,
    "compile": build_compile,
    "native": build_backend("native"),
}


def run(function: Function, inputs: Inputs, mode: str) -> list[Tensor]:
    """The call that is timed: the output, and in the backward mode the gradients of qkv and of the table."""
    if mode == "forward":
        with torch.inference_mode():
            return [function(inputs.qkv, inputs.table)]
    out = function(inputs.qkv, inputs.table)
    return [out.detach(), *torch.autograd.grad(out, [inputs.qkv, inputs.table], inputs.grad)]


def check(case: Case, inputs: Inputs, function: Function) -> tuple[bool, float]:
    """Whether the output and the gradients obey the tolerance rule, and the largest of their relative errors."""
    wide = inputs.to(torch.float64)
    plain = ENGINES["reference"](case, inputs)
    exact, eager, actual = (run(f, x, case.mode) for f, x in ((plain, wide), (plain, inputs), (function, inputs)))
    obeys = all(errors(a, p, e).ok for a, p, e in zip(actual, eager, exact, strict=True))
    return obeys, max(relative_error(a, e) for a, e in zip(actual, exact, strict=True))


def measure(case: Case, engines: Sequence[str], device: torch.device, *, limits: turns.Limits, budget_s: float) -> list[Row]:
    """Check, then time in turns; a row an engine."""
    inputs = make_inputs(case, device)
    candidates = {}
    for name in engines:
        function = ENGINES[name](case, inputs)
        begin = time.perf_counter()
        run(function, inputs, case.mode)
        note = f"first call {time.perf_counter() - begin:.1f} s" if name == "compile" else ""
        candidates[name] = turns.Candidate(partial(run, function, inputs, case.mode), *check(case, inputs, function), note)
    return turns.measure(SUITE, case, candidates, device, limits=limits, budget_s=budget_s)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("benchmarks/results"), help="Folder of the rows.")
@click.option("--engines", default=",".join(ENGINES), show_default=True, help="Comma-separated; the reference is always run.")
@click.option("--stages", default="1,2,3,4", show_default=True)
@click.option("--batch", default="1,8", show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--budget", type=click.FloatRange(0), default=1.0, show_default=True, help="Seconds of timing a case.")
@click.option("--quick", is_flag=True, help="Shifted cases only, a quarter of a second each; nothing is written.")
def main(*, output: Path, engines: str, stages: str, batch: str, device: str, budget: float, quick: bool) -> None:
    """Time window attention against its peers."""
    chosen = options.names("--engines", f"reference,{engines}", ENGINES)
    on, console = torch.device(device), table.console()
    cases = all_cases(
        [int(stage) for stage in options.names("--stages", stages, map(str, STAGES))], options.batch_sizes(batch), on,
        shifts=(3,) if quick else (0, 3),
    )  # fmt: skip
    if "native" in chosen:
        turns.require_native(on, SUITE)
    limits, found = turns.limits(on), []
    for case in track(cases, "window attention", console=console, transient=True):
        found += measure(case, chosen, on, limits=limits, budget_s=0.25 if quick else budget)
    turns.report(console, found, "window attention", None if quick else output)


if __name__ == "__main__":
    main()
