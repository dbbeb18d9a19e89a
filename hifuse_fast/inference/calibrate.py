"""Which parts of a network run in int8, and with which scales: what the user's images say.

The float32 network runs on the images. It says how large the inputs of each part are, and what its logits are. Then every
part is put into int8 alone. Parts are taken in the order of how much they move the logits for the work they do, while all
together move them by no more than is allowed. The network of all that are taken must not change the class of more images than
bfloat16 does; else the last ones are given back, a few at a time, until half of the work would be lost. Then the same is tried
with all mixers left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from hifuse_fast.checks import check_count, check_images
from hifuse_fast.inference.certificate import Certificate, Part
from hifuse_fast.inference.network import OptimizedHiFuse
from hifuse_fast.ops.prepared import int8
from hifuse_fast.ops.prepared.base import PreparedOp

LEAST_IMAGES = 32
LEAST_WORK = 0.5  #: of the multiply-adds outside the mixers; with less in int8, a network is not called so
GIVEN_BACK = 0.25  #: of the squared error of the parts in int8, each time that they change too many classes
ALLOWED = 0.05  #: error of the logits, in units of their spread, that all parts may make together
KEPT = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)  #: shares of the largest magnitude that a scale may keep
_ROWS = 1024  # of the inputs of a part that are kept, to choose its scales by
_ALONE = 16  # images on which each part is tried alone: 70 parts of Small, each a pass of them
_BATCH = 8

Scales = dict[str, dict[str, float]]  # of the parts in int8, by their names


class Build(Protocol):
    """Makes the network with these parts in int8 and maps of this dtype; ops that it made before it takes again."""

    def __call__(self, dtype: torch.dtype, scales: Mapping[str, Mapping[str, float]]) -> OptimizedHiFuse: ...


@dataclass
class Seen:
    """A part's definition, and rows of what it was given."""

    reference: Any
    flops: int = 0
    largest: float = 0.0
    rows: list[Tensor] = field(default_factory=list)


def check_calibration(images: Any, in_chans: int, most_changed: Any) -> None:
    """TypeError or ValueError for calibration images that cannot be used, before any work."""
    if not isinstance(images, Tensor):
        raise TypeError(f"calibration must be images [N, {in_chans}, H, W], a torch.Tensor, got {type(images).__name__}")
    try:
        check_images(images, in_chans)
    except (TypeError, ValueError) as error:
        raise type(error)(f"calibration: {error}") from None
    if images.dtype != torch.float32 or images.device.type != "cpu":
        raise TypeError(f"calibration must be torch.float32 on the CPU, got {images.dtype} on {images.device}")
    if len(images) < LEAST_IMAGES:
        raise ValueError(f"calibration must have {LEAST_IMAGES} images or more, got {len(images)}")
    for i, image in enumerate(images):
        if not image.isfinite().all():
            raise ValueError(f"calibration must be finite, got image {i} with values that are not")
    if most_changed is not None:
        check_count("most_changed", most_changed, least=0)


@torch.no_grad()
def calibrate(
    build: Build,
    dtype: torch.dtype,
    references: Mapping[str, PreparedOp],
    images: Tensor,
    most_changed: int | None,
) -> tuple[OptimizedHiFuse, Certificate]:
    """The network with the parts in int8 that may be, and its certificate.

    Args:
        build: see `Build`.
        dtype: of the maps, and of what does not run in int8.
        references: the definitions in float32 of the parts that can be quantised, by name, in the network's order.
        images: that passed `check_calibration`.
        most_changed: how many images may change their class; as many as in bfloat16 where that is None.

    Raises:
        ValueError: images that are all of one class, activations that overflow, a network that no choice of parts makes both
            half int8 and good enough; the message names the worst part.
    """
    network = build(torch.float32, {})
    seen, expected = _observe(network, references, images)
    if not expected.isfinite().all():
        raise ValueError("model has logits that are not finite on the calibration images")
    classes = expected.argmax(1)
    if len(classes.unique()) < 2:
        raise ValueError(f"calibration must be of two classes or more, and all {len(images)} images are of class {classes[0]}")
    other = differences(_logits(build(torch.bfloat16, {}), images), expected)[0]
    limit = other if most_changed is None else most_changed
    spread = spread_of(expected)
    outside = _flops_outside_mixers(network, images[:1])
    scales, kept = {}, {}
    for name, each in seen.items():
        scales[name], kept[name] = _choose(each)
        each.rows.clear()

    few = torch.linspace(0, len(images) - 1, min(_ALONE, len(images))).long()
    alone = _Alone(build(dtype, {}), images[few])
    parts = []
    for name, each in seen.items():
        _, error, _, probability = differences(alone(build(dtype, {name: scales[name]}), name), alone.logits)
        parts.append(Part(name, False, each.flops / outside, error / spread, 0.0, probability, scales[name], kept[name]))
    for choice in _choices(parts):
        work = _work(choice)
        if work < LEAST_WORK:
            break
        quantised = build(dtype, {part.name: scales[part.name] for part in choice if part.int8})
        changed, error, largest, probability = differences(_logits(quantised, images), expected)
        if changed <= limit:
            errors = (error / spread, largest, probability)
            return quantised, Certificate(len(images), changed, other, limit, work, *errors, tuple(choice))
    _refuse(choice, work, limit)


def _choices(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """The parts, fewer and fewer of them in int8. The last choice is too little.

    A choice has those in int8 that move the logits least for their work. Where mixers are among the first ones, the same
    follows without any mixer.
    """
    starts = [_within(parts, mixers=True)]
    if any(part.int8 and part.is_mixer for part in starts[0]):
        starts.append(_within(parts, mixers=False))
    for start in starts:
        choice = start
        while _work(choice) >= LEAST_WORK:
            yield choice
            choice = _give_back(choice)
    yield choice


def _within(parts: Sequence[Part], *, mixers: bool) -> list[Part]:
    """As many parts in int8 as make `ALLOWED` together: their errors are taken for independent, so squares add up."""
    left, made = ALLOWED**2, {part.name: part for part in parts}
    for part in sorted(parts, key=_cost):
        int8 = part.error**2 <= left and (mixers or not part.is_mixer)
        made[part.name] = replace(part, int8=int8, allowed=math.sqrt(left))
        left -= part.error**2 if int8 else 0
    return list(made.values())


def _work(parts: Sequence[Part]) -> float:
    return sum(part.work for part in parts if part.int8 and not part.is_mixer)


def _cost(part: Part) -> float:
    """Of a part in int8, by what it saves: a mixer's multiply-add saves about half the time that another one does."""
    return part.error**2 / (part.work * (0.5 if part.is_mixer else 1))


def _give_back(parts: Sequence[Part]) -> list[Part]:
    """The parts without those in int8 that were taken last: so many that they make `GIVEN_BACK` of the squared error."""
    taken = sorted((part for part in parts if part.int8), key=_cost, reverse=True)
    sums = itertools.accumulate((part.error**2 for part in taken), initial=0.0)
    least = GIVEN_BACK * sum(part.error**2 for part in taken)
    back = {part.name for part, before in zip(taken, sums, strict=False) if before < least} or {taken[0].name}
    return [replace(part, int8=False) if part.name in back else part for part in parts]


def _refuse(parts: Sequence[Part], work: float, limit: int) -> NoReturn:
    worst = max(parts, key=lambda part: part.error / part.allowed)
    raise ValueError(
        f"model cannot run in int8: of its multiply-adds outside the mixers {work:.0%} could, of which {LEAST_WORK:.0%} must, "
        f"where no more than {limit} calibration images may change their class; the worst part is {worst.name}, which alone "
        f"moves the logits by {worst.error:.1%} of their spread, where {worst.allowed:.1%} is its share"
    )


def _observe(network: OptimizedHiFuse, references: Mapping[str, PreparedOp], images: Tensor) -> tuple[dict[str, Seen], Tensor]:
    """What each part is given, and the logits."""
    seen = {name: Seen(reference) for name, reference in references.items()}
    step = max(1, _ROWS // len(images))

    def hook(name: str) -> Callable[..., None]:
        def look(_: Any, maps: tuple[Tensor, ...], __: Any) -> None:
            each = seen[name]
            rows = each.reference.rows(*maps).flatten(1, 2)
            each.flops = 2 * rows.shape[1] * sum(w.numel() for key, w in each.reference.packed().items() if w.dim() in (2, 4))
            largest = float(rows.abs().max())
            if not math.isfinite(largest):
                raise ValueError(f"model has activations that are not finite on the calibration images, in {name}")
            each.largest = max(each.largest, largest)
            few = torch.linspace(0, rows.shape[1] - 1, min(step, rows.shape[1])).long()
            each.rows.append(rows[:, few].flatten(0, 1))

        return look

    made = network._made
    handles = [made[name].register_forward_pre_hook(hook(name), with_kwargs=True) for name in references]
    try:
        return seen, _logits(network, images)
    finally:
        for handle in handles:
            handle.remove()


def _choose(seen: Seen) -> tuple[dict[str, float], dict[str, float]]:
    """The scales of a part, and which share of the largest magnitude each keeps.

    A few large values would make all steps coarse. Whether it is better to cut them is measured: by the error of the product.
    """
    reference, rows = seen.reference, torch.cat(seen.rows)
    packed = reference.packed()
    if "weight" in packed:
        scale, kept = _best_scale(rows, seen.largest, packed["weight"].flatten(1))
        return {"input_scale": scale}, {"input_scale": kept}
    scale, kept = _best_scale(rows, seen.largest, packed["expand"])
    hidden = reference.hidden(rows)
    # Of the rows that were kept alone: a rare larger one is cut.
    hidden_scale, hidden_kept = _best_scale(hidden, float(hidden.abs().max()), packed["project"])
    return {"input_scale": scale, "hidden_scale": hidden_scale}, {"input_scale": kept, "hidden_scale": hidden_kept}


def _best_scale(rows: Tensor, largest: float, weight: Tensor) -> tuple[float, float]:
    exact = rows @ weight.t()
    integers, factors = int8.quantise_weight(weight, 1.0)
    columns = integers.float().t()
    errors = {}
    for kept in KEPT:
        scale = max(largest * kept / int8.MOST, 1e-30)
        # In float32: what is compared is a thousand times larger than its rounding.
        found = (int8.quantise(rows, scale) @ columns) * (factors * scale)
        errors[kept] = float((found - exact).square().mean())
    best = min(KEPT, key=lambda kept: errors[kept])
    return max(largest * best / int8.MOST, 1e-30), best


def _logits(network: OptimizedHiFuse, images: Tensor) -> Tensor:
    return torch.cat([network(each).float() for each in images.split(_BATCH)])  # type: ignore[union-attr]


class _Alone:
    """The logits of networks that differ from one in a part: from the stage of the part on, as all before it is the same."""

    def __init__(self, network: OptimizedHiFuse, images: Tensor) -> None:
        self._given: dict[int, list[tuple[Any, ...]]] = {i: [] for i in range(len(network.stages))}
        handles = [stage.register_forward_pre_hook(self._keep(i)) for i, stage in enumerate(network.stages)]
        try:
            self.logits = _logits(network, images)
        finally:
            for handle in handles:
                handle.remove()
        stages = {op: i for i, stage in enumerate(network.stages) for op in stage.modules()}
        self._stages = {name: stages.get(op, len(handles) - 1) for name, op in network._made.items()}  # the head is of the last

    def __call__(self, network: OptimizedHiFuse, part: str) -> Tensor:
        stage = self._stages[part]
        batches = (network._resumed(stage, *_copies(maps)) for maps in self._given[stage])
        return torch.cat([logits.float() for logits in batches])

    def _keep(self, stage: int) -> Callable[..., None]:
        def keep(_: Any, given: tuple[Any, ...]) -> None:
            self._given[stage].append(_copies(given[:3]))

        return keep


def _copies(maps: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(None if each is None else each.clone() for each in maps)


def differences(logits: Tensor, expected: Tensor) -> tuple[int, float, float, float]:
    """How many classes differ; of the logits the error, and the largest; the largest of the probabilities."""
    difference = (logits - expected).double()
    probabilities = logits.softmax(1) - expected.softmax(1)
    changed = int((logits.argmax(1) != expected.argmax(1)).sum())
    return changed, float(difference.square().mean().sqrt()), float(difference.abs().max()), float(probabilities.abs().max())


def spread_of(logits: Tensor) -> float:
    """Root mean square of what decides: the logits of an image about their mean."""
    centred = logits.double() - logits.double().mean(1, keepdim=True)
    return max(float(centred.square().mean().sqrt()), torch.finfo(torch.float32).tiny)


def _flops_outside_mixers(network: OptimizedHiFuse, images: Tensor) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # which loads Triton

    with FlopCounterMode(display=False) as counter:
        network(images)
    counts = counter.get_flop_counts()
    mixers = sum(sum(each.values()) for name, each in counts.items() if name.endswith(".mixer"))
    return int(sum(counts["Global"].values()) - mixers)
