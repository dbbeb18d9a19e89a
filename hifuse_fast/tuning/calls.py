"""The calls that HiFuse makes of each op with gradients at 224 x 224: for the kernel report, for tuning, benches and tests.

A `Call` is one of them. A `PreparedCall` is one of a prepared op; frozen_calls.py lists those.

FLOP count the matrix products and convolutions, two operations a multiply-add; what is computed again is not counted. Bytes
count each tensor once a pass: in the forward the inputs and the output; in the backward the inputs that it needs (no residual),
the gradient of the output, and the gradients. This module needs no Triton.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from hifuse_fast import ops
from hifuse_fast.backends.select import OPS

WINDOW = 7
STAGES = {1: (56, 96, 3), 2: (28, 192, 6), 3: (14, 384, 12), 4: (7, 768, 24)}  # side, channels, heads
ORDER = ("window_attention", "linear", "depthwise_norm", "concat_norm", "batch_norm", "layer_norm", "max_mean", "mixer", "mlp")
MODES = ("forward", "forward+backward")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# What an H200 reaches: bytes a second of a copy, FLOP/s of a large matrix product by dtype (float32 without TF32).
H200_BANDWIDTH = 4.3e12
H200_PEAK = {"bfloat16": 790e12, "float16": 790e12, "float32": 60e12}


def _by_name(inputs: Mapping[str, Tensor]) -> tuple[list[Tensor], dict[str, Any]]:
    """The arguments of most ops."""
    return [], dict(inputs)


@dataclass(frozen=True)
class Call:
    """One call of an op. Maps are [batch, H, W, C], and the first one is `x` or `qkv`. The other tensors are parameters."""

    modes: ClassVar[tuple[str, ...]] = MODES
    batches: ClassVar[tuple[int, ...] | None] = None  #: to be measured with, where these are not those of all calls

    op: str
    part: str  #: of the network, or what tells the op's calls of a stage apart
    stage: int
    maps: Mapping[str, tuple[int, int, int]]
    parameters: Mapping[str, tuple[int, ...]]
    out: tuple[int, int, int]
    flop_per_image: float  #: forward; the backward has two products for each of the forward's
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Callable[[Mapping[str, Tensor]], tuple[list[Tensor], dict[str, Any]]] = _by_name
    only: str = ""  #: the one backend whose algorithm it asks for by name, if it does: there is nothing to choose then

    def rival(self, backend: str) -> str:
        """What stands for a backend of an order of the tables, where the order is measured."""
        return backend

    def has_kernels(self, backend: str) -> bool:
        """Whether the backend has kernels for it."""
        return backend in OPS[self.op] and self.only in ("", backend)

    @property
    def name(self) -> str:
        """The op, the part and the (first) map, as results name them."""
        side, _, channels = next(iter(self.maps.values()))
        return f"{self.op} {self.part} {side}x{side}x{channels}"

    def inputs(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> dict[str, Tensor]:
        """Seeded normal values, as leaves that want a gradient. Weights of products are scaled so that rows keep their size."""
        shapes = {name: (batch, *shape) for name, shape in self.maps.items()} | dict(self.parameters)
        return {name: x.to(dtype).requires_grad_() for name, x in self._values(shapes, torch.device(device)).items()}

    def _values(self, shapes: Mapping[str, tuple[int, ...]], device: torch.device) -> dict[str, Tensor]:
        if device.type == "meta":
            return {name: torch.empty(shape, device=device) for name, shape in shapes.items()}
        generator = torch.Generator(device).manual_seed(self.stage)
        values = {name: torch.randn(shape, generator=generator, device=device) for name, shape in shapes.items()}
        return {name: x if name in self.maps else x * _size(name, shapes[name]) for name, x in values.items()}

    def gradient(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """A seeded gradient of the output."""
        shape, device = (batch, *self.out), torch.device(device)
        if device.type == "meta":
            return torch.empty(shape, device=device, dtype=dtype)
        return torch.randn(shape, generator=torch.Generator(device).manual_seed(-1), device=device).to(dtype)

    def __call__(self, inputs: Mapping[str, Tensor], backend: str = "auto") -> Tensor:
        """The output."""
        positional, named = self.arguments(inputs)
        out: Tensor = getattr(ops, self.op)(*positional, **named, **self.options, backend=backend)
        return out

    def run(self, inputs: Mapping[str, Tensor], grad: Tensor | None, backend: str = "auto") -> list[Tensor]:
        """The output, and where `grad` is given the gradient of each input."""
        if grad is None:
            with torch.no_grad():
                return [self(inputs, backend)]
        out = self(inputs, backend)
        return [out.detach(), *torch.autograd.grad(out, list(inputs.values()), grad)]

    def bind(self, inputs: Mapping[str, Tensor], grad: Tensor | None, backend: str) -> Callable[[], list[Tensor]]:
        """`run` on these tensors, to be called again and again."""
        return partial(self.run, inputs, grad, backend)

    def flop(self, batch: int, mode: str) -> float:
        """Operations of a call."""
        return self.flop_per_image * batch * (1 if mode == "forward" else 3)

    def moved(self, batch: int, mode: str, itemsize: int) -> float:
        """Bytes that a call must move."""
        parameters = sum(map(math.prod, self.parameters.values()))
        maps, out = batch * sum(map(math.prod, self.maps.values())), batch * math.prod(self.out)
        needed = maps - batch * math.prod(self.maps.get("residual", (0,)))
        forward, backward = maps + parameters + out, 2 * (needed + parameters) + out
        return float(itemsize * (forward if mode == "forward" else forward + backward))

    def roofline(self, batch: int, mode: str, dtype: str) -> float:
        """The least seconds on an H200, by the rates above."""
        moved = self.moved(batch, mode, DTYPES[dtype].itemsize)
        return max(moved / H200_BANDWIDTH, self.flop(batch, mode) / H200_PEAK[dtype])


def _maps_in_order(inputs: Mapping[str, Tensor]) -> tuple[list[Tensor], dict[str, Any]]:
    """The arguments of most prepared ops: maps by position, the residual by name."""
    named = {name: x for name, x in inputs.items() if name == "residual"}
    return [x for name, x in inputs.items() if name not in named], named


@dataclass(frozen=True)
class PreparedCall(Call):
    """One call of the op that `ops.<op>`, as "prepare_linear", makes of parameters. No gradients; packing is no part of it."""

    modes: ClassVar[tuple[str, ...]] = ("forward",)
    arguments: Callable[[Mapping[str, Tensor]], tuple[list[Tensor], dict[str, Any]]] = _maps_in_order

    def inputs(self, batch: int, dtype: torch.dtype, device: torch.device | str) -> dict[str, Tensor]:
        """Maps as those of a `Call`; parameters in float32, which the op packs."""
        made = super().inputs(batch, dtype, device)
        return {name: (x if name in self.maps else x.float()).detach() for name, x in made.items()}

    def run(self, inputs: Mapping[str, Tensor], grad: Tensor | None, backend: str = "auto") -> list[Tensor]:
        """The results; there are no gradients."""
        return self.bind(inputs, grad, backend)()

    def bind(self, inputs: Mapping[str, Tensor], grad: Tensor | None, backend: str) -> Callable[[], list[Tensor]]:
        """The prepared op on these maps, to be called again and again."""
        maps, parameters = ({name: inputs[name] for name in names} for names in (self.maps, self.parameters))
        positional, named = self.arguments(maps)
        op = getattr(ops, self.op)(**parameters, **self.options, dtype=positional[0].dtype, backend=backend)

        def call() -> list[Tensor]:
            out = op(*positional, **named)
            return list(out) if isinstance(out, tuple) else [out]

        return call


@cache
def all_calls() -> tuple[Call, ...]:
    """Every call of an op with gradients, op by op, from stage 1 to 4."""
    made = [
        call
        for stage, (side, channels, heads) in STAGES.items()
        for call in (
            *_attention(stage, side, channels, heads),
            *_linears(stage, side, channels),
            *_norms(stage, side, channels),
            *_concatenations(stage, side, channels),
            *_batch_norms(stage, side, channels),
            *_statistics(stage, side, channels),
            *_inverted_mlp(stage, side, 3 * channels),
        )
    ]
    return tuple(sorted(made, key=lambda call: ORDER.index(call.op)))


def choose(names: str, calls: Sequence[Call] | None = None) -> list[Call]:
    """Those of `calls` whose name contains one of the comma-separated `names`; all of them for "".

    Raises:
        ValueError: no call has one of them.
    """
    calls = all_calls() if calls is None else calls
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if not any(name in call.name for call in calls):
            raise ValueError(f"no call has {name!r} in its name; ops: {', '.join(sorted({call.op for call in calls}))}")
    return [call for call in calls if any(name in call.name for name in wanted)]


def _attention(stage: int, side: int, channels: int, heads: int) -> list[Call]:
    tables = {"bias_table": ((2 * WINDOW - 1) ** 2, heads)}
    flop = 2 * 2.0 * side**2 * WINDOW**2 * channels  # Q K^T and A V
    out = (side, side, channels)
    return [
        Call("window_attention", f"shift {shift}", stage, {"qkv": (side, side, 3 * channels)}, tables, out, flop,
             {"num_heads": heads, "window_size": WINDOW, "shift_size": shift})
        for shift in (0, 3)
    ]  # fmt: skip


def _linears(stage: int, side: int, channels: int) -> list[Call]:
    """Linears of the global block, of which the local block has the last one too, and of patch merging."""
    x = {"x": (side, side, channels)}

    def make(part: str, n: int, maps: Mapping[str, Any], parameters: Mapping[str, Any], **options: str) -> Call:
        k, pixels = parameters["weight"][1], side**2 // (4 if part == "merging" else 1)
        out = (side // 2, side // 2, n) if part == "merging" else (side, side, n)
        return Call("linear", part, stage, maps, parameters, out, 2.0 * pixels * k * n, options)

    def norm(k: int) -> dict[str, tuple[int, ...]]:
        return {"norm_weight": (k,), "norm_bias": (k,)}

    square = {"weight": (channels, channels), "bias": (channels,)}
    qkv = {"weight": (3 * channels, channels), "bias": (3 * channels,)}
    made = [
        make("qkv", 3 * channels, x, qkv | norm(channels)),
        make("proj", channels, x, square),
        make("fc1", channels, x | {"residual": (side, side, channels)}, square, activation="gelu"),
    ]
    if stage < 4:
        merging = {"weight": (2 * channels, 4 * channels)} | norm(4 * channels)
        made.append(make("merging", 2 * channels, x, merging, rows="patches"))
    return made


def _norms(stage: int, side: int, channels: int) -> list[Call]:
    """Norms of the local block, and norms without the linear after them, of the global block and of patch merging."""
    x, out = {"x": (side, side, channels)}, (side, side, channels)
    affine = {"weight": (channels,), "bias": (channels,)}
    filters = {"filters": (channels, 1, 3, 3), "filter_bias": (channels,)}
    made = [
        Call("depthwise_norm", "dwconv", stage, x, filters | affine, out, 2.0 * 9 * side**2 * channels),
        Call("layer_norm", "norm1", stage, x, affine, out, 0.0),
    ]
    if stage < 4:
        k, half = 4 * channels, side // 2
        affine = {"weight": (k,), "bias": (k,)}
        made.append(Call("layer_norm", "merging", stage, x, affine, (half, half, k), 0.0, {"rows": "patches"}))
    return made


def _concatenations(stage: int, side: int, channels: int) -> list[Call]:
    """Concatenations of the fusion: of its inputs (at stage 1 two, without the fused map), and of its gated maps."""
    one, gates = (side, side, channels), {"channel_gate": (1, 1, channels), "pixel_gate": (side, side, 1)}
    three = {"x1": one, "x2": one, "x3": one}
    maps = {"plain": {"x1": one, "x2": one} if stage == 1 else three, "gated": three | gates}
    counts = {"plain": 2 if stage == 1 else 3, "gated": 3}
    return [
        Call("concat_norm", part, stage, maps[part], {"weight": (n * channels,), "bias": (n * channels,)},
             (side, side, n * channels), 0.0, arguments=_concat_arguments)
        for part, n in counts.items()
    ]  # fmt: skip


def _concat_arguments(inputs: Mapping[str, Tensor]) -> tuple[list[Tensor], dict[str, Any]]:
    maps = [x for name, x in inputs.items() if name[0] == "x"]
    gates = [inputs["channel_gate"], inputs["pixel_gate"], None] if "pixel_gate" in inputs else None
    return maps, {"weight": inputs["weight"], "bias": inputs["bias"], "gates": gates}


def _batch_norms(stage: int, side: int, channels: int) -> list[Call]:
    """Batch norms of the fusion, in training. The last two belong to the fused map, which stage 1 does not have."""
    parts: dict[str, tuple[int, int, dict[str, Any]]] = {
        "W_l": (side, channels, {}),
        "spatial": (side, 1, {"activation": "sigmoid"}),
        "W": (side, channels, {"activation": "gelu"}),
        "bn1": (side, 3 * channels, {}),
        "Updim": (2 * side, channels, {"activation": "relu", "pool": True}),
        "conv3": (side, channels, {}),
    }
    made = []
    for part, (size, k, options) in list(parts.items())[: 4 if stage == 1 else 6]:
        out = (side, side, k)
        maps = {"x": (size, size, k)} | ({"residual": out} if part == "conv3" else {})
        affine = {"weight": (k,), "bias": (k,)}
        made.append(Call("batch_norm", part, stage, maps, affine, out, 0.0, {"training": True, **options}))
    return made


def _statistics(stage: int, side: int, channels: int) -> list[Call]:
    """What the gates of the fusion look at."""
    outs = {"channels": (side, side, 2), "pixels": (2, 1, channels)}
    return [
        Call("max_mean", f"over {over}", stage, {"x": (side, side, channels)}, {}, out, 0.0, {"over": over})
        for over, out in outs.items()
    ]


def _inverted_mlp(stage: int, side: int, channels: int) -> list[Call]:
    """Its two halves, the first also as in the paper, depthwise."""
    z, pixels = (side, side, channels), side**2
    filters = {"dense": (channels, channels, 3, 3), "depthwise": (channels, 1, 3, 3)}
    weights = {"expand_weight": (4 * channels, channels), "project_weight": (channels // 3, 4 * channels)}
    flop = 2.0 * pixels * 4 * channels * (channels + channels // 3)
    return [
        *(Call("mixer", part, stage, {"z": z}, {"weight": weight}, z, 2.0 * 9 * pixels * channels * weight[1])
          for part, weight in filters.items()),
        Call("mlp", "conv2, conv3", stage, {"u": z}, weights, (side, side, channels // 3), flop),
    ]  # fmt: skip


def _size(name: str, shape: tuple[int, ...]) -> float:
    """The deviation of a parameter's values."""
    product = name.endswith("weight") or name in ("expand", "project", "squeeze")
    return math.prod(shape[1:]) ** -0.5 if product and len(shape) > 1 else 0.5
