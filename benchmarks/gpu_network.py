"""The whole network on a CUDA device, inference and training step, against peers: `python -m benchmarks.gpu_network`.

Inference: `eager` (the reference, weights and images cast, channels last), `compile` (torch.compile of it, max-autotune) and
`hifuse_fast` (`optimize_for_inference`), also with all ops by one backend: `hifuse_fast triton`, `hifuse_fast cuda`. Training:
autocast over float32 weights, cross entropy, the gradient of every weight, no optimizer and no scaling of the loss, which would
be the same for all; `eager` and `compile` are the reference, `hifuse_fast` is the model under backend "auto", `hifuse_fast
cuda` under "cuda", `hifuse_fast compile` is torch.compile over its ops. Peers and training steps run as one CUDA graph that the
bench captures, which is max-autotune at its best: its own graphs do the same and copy inputs besides. Inference of ours is
timed as users call it, with its own graphs, the copies in and out among the time.

Each engine is checked against float64 before it is timed: logits by the tolerance rule, a training step by `judge_step`. The
floor is the larger of the multiply-adds (three times in training) over the best matrix product of this run, and of weights and
images over its copy rate. The peak is weights and what a call adds. Rows are written case by case.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hifuse_fast import HiFuse, create_model, list_models, optimize_for_inference, use_backend
from hifuse_fast.backends.cuda import library
from hifuse_fast.backends.select import current_backend
from hifuse_fast.bench import cases, options, turns
from hifuse_fast.bench import network as bench
from hifuse_fast.bench.cases import Ready, Suite
from hifuse_fast.bench.rows import Row, Verdict
from hifuse_fast.testing import golden_image, golden_weights, l2_norm, moved, wrong_gradients
from hifuse_fast.tuning.calls import DTYPES

SUITE = "gpu_network"
MODES = ("inference", "training")
CHUNK = 32  # images of a call in float64, whose maps take four times the memory
OF_A_PEER = 10  #: times eager's error, see `judge_step`
MOVED = 8  #: eager steps on moved images, which tell the error of PyTorch's that one step tells by chance alone

Forward = Callable[[Tensor], Tensor]
Options = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Case:
    """One network, batch size, dtype and mode."""

    model: str
    batch: int
    dtype: str
    mode: str
    size: int = 224
    options: Options = ()  #: of `create_model`, for a narrower one

    @property
    def name(self) -> str:
        """As the results file names it."""
        return self.model

    @cached_property
    def flop(self) -> float:
        """Operations of convolutions, linears and attention products."""
        passes = 3 if self.mode == "training" else 1
        return 2.0 * passes * self.batch * bench.multiply_adds(self.model, self.size, **dict(self.options))

    @cached_property
    def moved(self) -> float:
        """Bytes of the images and weights; in training, where they are float32, also of the gradients."""
        weights = sum(trained(self.model, self.options).values())
        images = 3 * self.batch * self.size**2
        return float(
            4 * (2 * weights + images) if self.mode == "training" else DTYPES[self.dtype].itemsize * (weights + images)
        )


@lru_cache
def trained(model: str, options: Options) -> dict[str, int]:
    """The parameters that the logits depend on, and their sizes; official checkpoints hold others too."""
    network = create_model(model, bench.NUM_CLASSES, device="meta", **dict(options))
    named = dict(network.named_parameters())
    with use_backend("reference"):
        logits = network(torch.empty(2, 3, 32, 32, device="meta"))
    grads = torch.autograd.grad(logits.sum(), list(named.values()), allow_unused=True)
    return {name: p.numel() for (name, p), grad in zip(named.items(), grads, strict=True) if grad is not None}


@lru_cache(maxsize=1)
def golden(model: str, options: Options) -> HiFuse:
    """The network with the golden weights, on the CPU."""
    network = create_model(model, bench.NUM_CLASSES, **dict(options))
    golden_weights(network)
    return network


@dataclass(frozen=True)
class Subject:
    """What the engines of a case are given: the network in float32, on a GPU channels last, and what it is called with."""

    network: HiFuse
    images: Tensor
    targets: Tensor
    dtype: torch.dtype
    names: tuple[str, ...]  #: of the parameters whose gradients are asked for


def make_subject(case: Case, device: torch.device) -> Subject:
    """The network and its images on `device`."""
    network = copy.deepcopy(golden(case.model, case.options)).to(device).train(case.mode == "training")
    if device.type == "cuda":
        network = _channels_last(network)
    images = golden_image(case.batch, case.size, case.size).to(device, torch.float32, memory_format=torch.channels_last)
    targets = torch.arange(case.batch, device=device) % bench.NUM_CLASSES
    return Subject(network, images, targets, DTYPES[case.dtype], tuple(trained(case.model, case.options)))


def _channels_last(network: HiFuse) -> HiFuse:
    moved: HiFuse = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def infer(forward: Forward, images: Tensor, backend: str) -> Tensor:
    """The logits by `backend`."""
    with torch.no_grad(), use_backend(backend):
        return forward(images)


def step(forward: Forward, subject: Subject, backend: str, autocast: bool = True) -> list[Tensor]:
    """The loss of a training step by `backend`, and the gradient of each weight."""
    low = autocast and subject.dtype != torch.float32
    with use_backend(backend):
        with torch.autocast(subject.images.device.type, subject.dtype if low else torch.bfloat16, enabled=low):
            logits = forward(subject.images)
        loss = F.cross_entropy(logits.float() if autocast else logits, subject.targets)
        weights = [subject.network.get_parameter(name) for name in subject.names]
        return [loss.detach(), *torch.autograd.grad(loss, weights)]


# Engines


def _compile(network: nn.Module, device: torch.device) -> Forward:
    """Compiled without CUDA graphs of its own; on a CPU without max-autotune, which is not ready after a quarter of an hour.

    What is compiled keeps the backend that it was traced under, and torch.compile looks only at the arguments to tell whether
    it has traced this before: so the backend is one of them.
    """

    def forward(images: Tensor, backend: str) -> Tensor:
        if backend != current_backend():
            raise AssertionError("the backend of the call")
        logits: Tensor = network(images)
        return logits

    mode = "max-autotune-no-cudagraphs" if device.type == "cuda" else "default"
    compiled = torch.compile(forward, fullgraph=True, dynamic=False, mode=mode)
    return lambda images: compiled(images, current_backend())


def _inference(subject: Subject, compiled: bool) -> Ready[Tensor]:
    network = copy.deepcopy(subject.network).to(subject.dtype)
    forward = _compile(network, subject.images.device) if compiled else network
    return Ready(partial(infer, forward, subject.images.to(subject.dtype), "reference"), held_mib=_mib(network))


def _frozen(subject: Subject, backend: str = "auto") -> Ready[Any]:
    """Its maps stay from call to call, so that memory is measured on another one's first call."""
    freeze = partial(optimize_for_inference, subject.network, subject.dtype, backend=backend)
    network, images = freeze(), subject.images.to(subject.dtype)
    _compile_ahead(partial(freeze(cuda_graphs=False), images), subject)
    return Ready(
        partial(network, images),
        graphed=False,
        held_mib=_mib(network),
        fresh=lambda: partial(freeze(cuda_graphs=False), images),
    )


def _training(subject: Subject, backend: str, compiled: bool) -> Ready[list[Tensor]]:
    forward = _compile(subject.network, subject.images.device) if compiled else subject.network
    if backend != "reference":
        _compile_ahead(partial(step, subject.network, subject, backend), subject)  # statistics of a batch need no running ones
    return Ready(partial(step, forward, subject, backend), held_mib=_mib(subject.network))


def _compile_ahead(call: Callable[[], object], subject: Subject) -> None:
    """The Triton kernels of the call, on all cores, where there are any."""
    if subject.images.is_cuda:
        from hifuse_fast.backends.triton.compile import compile_ahead

        compile_ahead(call)


def _mib(network: nn.Module) -> float:
    return sum(tensor.nbytes for tensor in itertools.chain(network.parameters(), network.buffers())) / 2**20


#: By mode; eager first, which the others' errors and times are compared with.
ENGINES: dict[str, dict[str, Callable[[Subject], Ready[Any]]]] = {
    "inference": {
        "eager": partial(_inference, compiled=False),
        "compile": partial(_inference, compiled=True),
        "hifuse_fast": _frozen,
        "hifuse_fast triton": partial(_frozen, backend="triton"),
        "hifuse_fast cuda": partial(_frozen, backend="cuda"),
    },
    "training": {
        "eager": partial(_training, backend="reference", compiled=False),
        "compile": partial(_training, backend="reference", compiled=True),
        "hifuse_fast": partial(_training, backend="auto", compiled=False),
        "hifuse_fast cuda": partial(_training, backend="cuda", compiled=False),
        "hifuse_fast compile": partial(_training, backend="auto", compiled=True),
    },
}
OWN = ("hifuse_fast", "hifuse_fast triton", "hifuse_fast cuda")  #: of ours those that need no compiler
BY_CUDA = "hifuse_fast cuda"


# Checks


def exact_logits(subject: Subject) -> Tensor:
    """The reference's logits in float64, a few images at a time."""
    network = copy.deepcopy(subject.network).double()
    return torch.cat([infer(network, images.double(), "reference") for images in subject.images.split(CHUNK)])


def exact_step(subject: Subject) -> list[Tensor]:
    """The reference's training step in float64; the insides of blocks are computed twice, so that memory is not the limit."""
    network = copy.deepcopy(subject.network).double()
    network.set_grad_checkpointing()
    wide = Subject(network, subject.images.double(), subject.targets, torch.float64, subject.names)
    return step(network, wide, "reference", autocast=False)


def judge_logits(eager: Tensor, exact: Tensor, actual: Tensor) -> Verdict:
    """By the tolerance rule."""
    verdict = bench.check_logits(actual, eager, exact)
    return replace(verdict, note=verdict.note.partition(", ")[0])


def eager_steps(subject: Subject) -> list[list[Tensor]]:
    """Eager PyTorch's step on the images, and on images `moved` by a rounding, which together tell its error."""
    images = [subject.images, *(moved(subject.images, seed) for seed in range(MOVED))]
    return [step(subject.network, replace(subject, images=each), "reference") for each in images]


def judge_step(
    subject: Subject, eager: Sequence[list[Tensor]], exact: list[Tensor], actual: list[Tensor], *, own: bool = True
) -> Verdict:
    """Loss and gradients against float64, over the largest errors of `eager_steps`, which are in the same dtype.

    The loss may be off by three times as much as eager's, plus one rounding; for gradients see `testing.wrong_gradients`. The
    error of the row is that of all gradients as one vector. Where the engine is not our own, weights may break this rule if all
    gradients together are off by at most `OF_A_PEER` times eager's error: its time is published, and the row counts them.
    """
    eps = torch.finfo(subject.dtype).eps
    named, true, *plain = (dict(zip(subject.names, each[1:], strict=True)) for each in (actual, exact, *eager))
    wrong = wrong_gradients(named, plain, true, eps)
    loss, size = l2_norm([actual[0] - exact[0]]), l2_norm([exact[0]])
    eager_loss = max(l2_norm([each[0] - exact[0]]) for each in eager)
    if not loss <= 3 * eager_loss + eps * size:
        wrong.insert(0, "the loss")
    note = f"loss {loss / size:.1e}" + (f", wrong {wrong[0]} and {len(wrong) - 1} more" if wrong else "")
    whole = l2_norm(exact[1:])
    error, *usual = (
        l2_norm(a.double() - e for a, e in zip(each[1:], exact[1:], strict=True)) / whole for each in (actual, *eager)
    )
    near = not own and "the loss" not in wrong and error <= OF_A_PEER * max(usual)
    return Verdict(near or not wrong, error, note)


# The bench


def all_cases(models: Iterable[str], batches: Iterable[int], dtypes: Iterable[str], modes: Iterable[str]) -> list[Case]:
    """The cases, the outer loop over dtype and batch."""
    return [
        Case(model, batch, dtype, mode)
        for dtype, batch, mode, model in itertools.product(dtypes, batches, tuple(modes), tuple(models))
    ]


def chosen_engines(case: Case, chosen: Sequence[str] | None) -> list[str]:
    """The engines of the case that were chosen, for None all that are built."""
    known = [name for name in ENGINES[case.mode] if name != BY_CUDA or library.lib is not None]
    return [name for name in known if chosen is None or name in chosen]


def measure(
    case: Case, chosen: Sequence[str] | None, device: torch.device, *, limits: turns.Limits, budget_s: float
) -> list[Row]:
    """Check, then time in turns; a row an engine."""
    engines = ENGINES[case.mode]
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, benchmark=True, allow_tf32=False):
        subject = make_subject(case, device)
        if case.mode == "training":
            judge: Callable[..., Verdict] = partial(judge_step, subject, eager_steps(subject), exact_step(subject))
        else:
            judge = partial(judge_logits, engines["eager"](subject).call(), exact_logits(subject))
        candidates = {}
        for name in chosen_engines(case, chosen):
            own = name.startswith("hifuse_fast")
            judged = partial(judge, own=own) if case.mode == "training" else judge
            candidates[name] = cases.candidate(partial(engines[name], subject), judged, device, own=own)
        return turns.measure(SUITE, case, candidates, device, limits=limits, budget_s=budget_s, baseline="eager", per="image")


def suite(chosen: Sequence[str] | None, budget_s: float) -> Suite[Case]:
    """The benchmark of these engines, with `budget_s` seconds of timing a case."""
    return Suite(
        SUITE,
        "the network on a CUDA device",
        lambda case: chosen_engines(case, chosen),
        lambda case, device, limits: measure(case, chosen, device, limits=limits, budget_s=budget_s),
    )


@click.command()
@click.option("--models", default=",".join(list_models()), show_default=True)
@click.option("--engines", "chosen", default="", help="Comma-separated; all if empty. The check always runs eager.")
@cases.options(batch="128,1,32", modes=MODES, budget=2.0)
def main(
    *, models: str, chosen: str, output: Path, batch: str, dtypes: str, modes: str, budget: float, limit: float, resume: bool
) -> None:
    """Time the network on a CUDA device against its peers, inference and training."""
    known = dict.fromkeys(itertools.chain.from_iterable(ENGINES.values()))
    only = options.names("--engines", chosen, known) if chosen else None
    found = all_cases(
        options.names("--models", models, list_models()),
        options.batch_sizes(batch),
        options.names("--dtypes", dtypes, DTYPES),
        options.names("--modes", modes, MODES),
    )
    suite(only, budget).main(found, output=output, limit=limit, resume=resume)


if __name__ == "__main__":
    main()
