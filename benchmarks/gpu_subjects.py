"""What `benchmarks.gpu_ops` measures: the calls of each op, two whole blocks, and the engines that run them.

An engine is built for one case and maps its inputs, by name, to the output. Peers are compiled with max-autotune, without CUDA
graphs of their own: the bench puts every engine into one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hifuse_fast import GlobalBlock, LocalBlock, use_backend
from hifuse_fast.backends.cuda import library, sm90
from hifuse_fast.backends.select import RUNS_ON, candidates
from hifuse_fast.bench.turns import SM90A
from hifuse_fast.ops.functions.window_attention import reference as definition
from hifuse_fast.tuning import conformed
from hifuse_fast.tuning.calls import MODES, STAGES, WINDOW, Call, PreparedCall, all_calls
from hifuse_fast.tuning.frozen_calls import algorithm_calls, frozen_calls
from hifuse_fast.tuning.whole_calls import BlockCall, block_calls

Inputs = Mapping[str, Tensor]
Function = Callable[[Inputs], Tensor]


@dataclass(frozen=True)
class Block:
    """A block of the network, with the interface of a `Call`; its inputs are x and its parameters."""

    modes: ClassVar[tuple[str, ...]] = MODES

    kind: str  #: "global" or "local"
    stage: int

    @property
    def name(self) -> str:
        """The block and its map."""
        side, channels, _ = STAGES[self.stage]
        return f"{self.kind}_block {side}x{side}x{channels}"

    @cached_property
    def module(self) -> nn.Module:
        """The block, shifted if global; its own parameters are not used."""
        _, channels, heads = STAGES[self.stage]
        return GlobalBlock(channels, heads, shift_size=3) if self.kind == "global" else LocalBlock(channels)

    @property
    def _parameters(self) -> dict[str, tuple[int, ...]]:
        """Those that matter: nothing uses `norm2`."""
        return {name: tuple(p.shape) for name, p in self.module.named_parameters() if not name.startswith("norm2")}

    def inputs(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> dict[str, Tensor]:
        """Seeded normal values; a row of a linear's weights has the length 1."""
        side, channels, _ = STAGES[self.stage]
        shapes = {"x": (batch, side, side, channels), **self._parameters}
        generator = torch.Generator(device).manual_seed(self.stage)
        made = {name: torch.randn(shape, generator=generator, device=device) for name, shape in shapes.items()}
        scale = {name: shape[1] ** -0.5 if len(shape) == 2 else 1.0 for name, shape in shapes.items()}
        return {name: (x * scale[name]).to(dtype).requires_grad_() for name, x in made.items()}

    def gradient(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """A seeded gradient of the output."""
        side, channels, _ = STAGES[self.stage]
        generator = torch.Generator(device).manual_seed(-1)
        return torch.randn(batch, side, side, channels, generator=generator, device=device).to(dtype)

    def __call__(self, inputs: Inputs, backend: str) -> Tensor:
        """The output."""
        with use_backend(backend):
            return self.run(inputs)

    def run(self, inputs: Inputs) -> Tensor:
        """The output by the backend that is in use."""
        parameters = {name: x for name, x in inputs.items() if name != "x"}
        out: Tensor = torch.func.functional_call(self.module, parameters, (inputs["x"],))
        return out

    def flop(self, batch: int, mode: str) -> float:
        """Of the ops that it consists of."""
        parts = ("linear qkv", "linear proj", "linear fc1", "window_attention shift 3")
        wanted = parts if self.kind == "global" else ("linear fc1", "depthwise_norm")
        return sum(call.flop(batch, mode) for call in all_calls() if call.stage == self.stage and call.name.startswith(wanted))

    def moved(self, batch: int, mode: str, itemsize: int) -> float:
        """If nothing between input and output were written: x, parameters and output, in the backward also their gradients."""
        side, channels, _ = STAGES[self.stage]
        parameters, pixels = sum(map(math.prod, self._parameters.values())), batch * side**2 * channels
        forward, backward = 2 * pixels + parameters, 3 * pixels + 2 * parameters
        return float(itemsize * (forward if mode == "forward" else forward + backward))


Subject = Call | Block


def subjects() -> list[Subject]:
    """The frozen network's blocks and calls, by each algorithm that there is on a GPU; then those that have gradients."""
    blocks = [Block(kind, stage) for kind in ("global", "local") for stage in STAGES]
    return [*block_calls(), *frozen_calls(), *algorithm_calls(), *blocks, *all_calls()]


def engines(subject: Subject) -> dict[str, Callable[[Subject, int, torch.device], Function]]:
    """What can run it, by name; the reference first, ours last."""
    if isinstance(subject, PreparedCall):
        by = list(RUNS_ON) if isinstance(subject, BlockCall) else candidates(subject.op, "cuda")
        names = [
            name for name in by if "cuda" in RUNS_ON[name] and (subject.has_kernels(name) or isinstance(subject, BlockCall))
        ]
        of_sm90 = {SM90A: _by_sm90} if "cuda" in names and _has_sm90(subject) else {}
        return {name: _prepared(name) for name in ("reference", *_built(names))} | of_sm90
    found: dict[str, Any] = {"reference": _backend("reference"), "compile": _compiled}
    if isinstance(subject, Call) and subject.op == "window_attention":
        found |= {"sdpa": _sdpa, "flex": _flex}
    if isinstance(subject, Call):
        return found | {name: _backend(name) for name in _built(candidates(subject.op, "cuda"))}
    return found | {"hifuse_fast": _backend("auto")}


def _built(names: list[str]) -> list[str]:
    """The backends without that of the CUDA kernels where they are not built."""
    return [name for name in names if name != "cuda" or library.lib is not None]


def _has_sm90(call: PreparedCall) -> bool:
    """Whether the call has a kernel for sm_90a, which is built, and whose instructions conform on this GPU."""
    served = call.part == "dense" or (call.op == "prepare_mlp" and call.stage < 3)
    built = hasattr(library.lib, f"{call.op.removeprefix('prepare_')}_sm90")
    return served and built and torch.cuda.is_available() and conformed.holds(torch.cuda.get_device_name())


def _by_sm90(call: Any, batch: int, device: torch.device) -> Function:
    run = _prepared("cuda")(call, batch, device)

    def taken(inputs: Inputs) -> Tensor:
        with sm90.taken():
            return run(inputs)

    return taken


def _backend(backend: str) -> Callable[[Subject, int, torch.device], Function]:
    def build(subject: Subject, _batch: int, _device: torch.device) -> Function:
        return lambda inputs: subject(inputs, backend)

    return build


def _prepared(backend: str) -> Callable[[Any, int, torch.device], Function]:
    """The prepared op; weights are packed before the calls that are timed."""

    def build(call: PreparedCall, _batch: int, _device: torch.device) -> Function:
        bound: list[tuple[Inputs, Callable[[], list[Tensor]]]] = []  # of the bench's inputs, and of the same in float64

        def run(inputs: Inputs) -> Tensor:
            known = next((bind for given, bind in bound if given is inputs), None)
            if known is None:
                known = call.bind(inputs, None, backend)
                bound.append((inputs, known))
            return known()[0]

        return run

    return build


def _compile(function: Function) -> Function:
    compiled: Function = torch.compile(function, fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs")
    return compiled


def _compiled(subject: Subject, _batch: int, _device: torch.device) -> Function:
    """The backend is chosen around what is compiled: torch.compile cannot trace the choice."""
    compiled = _compile(subject.run if isinstance(subject, Block) else subject)

    def run(inputs: Inputs) -> Tensor:
        with use_backend("reference"):
            return compiled(inputs)

    return run


def _windows(call: Call) -> tuple[int, int, int, int]:
    """Side, windows of a map, heads, shift."""
    side, _, heads = STAGES[call.stage]
    return side, (side // WINDOW) ** 2, heads, call.options["shift_size"]


def _around(call: Call, attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Function:
    """Roll and partition before `attend(q, k, v, table)` over [B windows, heads, N, D], merge and roll back after it."""
    side, windows, heads, shift = _windows(call)

    def run(inputs: Inputs) -> Tensor:
        x = inputs["qkv"].roll((-shift, -shift), (1, 2)) if shift else inputs["qkv"]
        q, k, v = (y.flatten(0, 1) for y in definition.partition(x, WINDOW, heads))
        out = attend(q, k, v, inputs["bias_table"])
        out = definition.merge(out.unflatten(0, (-1, windows)), side, side, WINDOW)
        return out.roll((shift, shift), (1, 2)) if shift else out.contiguous()

    return run


def _sdpa(call: Call, batch: int, device: torch.device) -> Function:
    """SDPA with bias and shift as one additive mask: made once without gradients, in each call with them."""
    side, _, _, shift = _windows(call)
    mask = definition.shift_mask(side, side, WINDOW, shift, device).repeat(batch, 1, 1)[:, None] if shift else None
    made: list[Tensor] = []

    def additive(table: Tensor) -> Tensor:
        bias = definition.position_bias(table, WINDOW)
        return bias if mask is None else bias + mask.to(bias.dtype)

    def attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return F.scaled_dot_product_attention(q, k, v, attn_mask=additive(table))
        if not made:
            made.append(additive(table).contiguous())
        return F.scaled_dot_product_attention(q, k, v, attn_mask=made[0])

    return _around(call, attend)


def flex(call: Call, batch: int, device: torch.device) -> Function:
    """FlexAttention: the bias as score_mod (its table in float32, for the sum of gradients), the shift as a block mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    side, windows, _, shift = _windows(call)
    index = definition.relative_position_index(WINDOW).to(device)
    block_mask = None
    if shift:
        seen = definition.shift_mask(side, side, WINDOW, shift, device) == 0

        def allowed(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return seen[b % windows, q, k]

        block_mask = create_block_mask(allowed, batch * windows, None, WINDOW**2, WINDOW**2, device=str(device))

    def attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        wide = table.float()

        def biased(score: Tensor, _b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score + wide[index[i, j], h]

        out: Tensor = flex_attention(q, k, v, score_mod=biased, block_mask=block_mask)
        return out

    return _around(call, attend)


def _flex(call: Call, batch: int, device: torch.device) -> Function:
    return _compile(flex(call, batch, device))
