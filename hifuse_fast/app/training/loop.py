"""The steps of a training, from wherever it stands to its end."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hifuse_fast import HiFuse
from hifuse_fast.app.console import Stopped, progress
from hifuse_fast.app.training import recipe
from hifuse_fast.app.training.configuration import Configuration
from hifuse_fast.app.training.feed import Data, Feed, Step
from hifuse_fast.app.training.ranks import Ranks
from hifuse_fast.app.training.scores import scores_of
from hifuse_fast.app.training.state import Progress, State, optimizer_tensors, restore_optimizer
from hifuse_fast.data.dataset import Batch
from hifuse_fast.data.draws import DROPOUT, seed_of

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_SMALLEST_SCALE = 2.0**-14  # of the gradients in float16: where even that overflows, the network does
_NAMED = 40  # files in a message


class Keeper(Protocol):
    """Who writes what a training has come to."""

    def save(self, training: Training) -> None:
        """Write the state."""

    def end_epoch(self, training: Training, row: Mapping[str, Any]) -> None:
        """Write the state, the log, and the network where `row` says that it is the best."""


class Training:
    """A network on its way through the epochs.

    Args:
        configuration, data, ranks: what is asked, on what, and which part of it is this process's.
        network: on `device`, with its initial weights.
        device: where it is trained.
    """

    def __init__(self, configuration: Configuration, data: Data, ranks: Ranks, network: HiFuse, device: torch.device) -> None:
        self.configuration, self.data, self.ranks, self.device = configuration, data, ranks, device
        self.network, self.progress = network, Progress()
        self.feed = Feed(configuration, data, ranks, greyscale=network.in_chans == 1, pin=device.type == "cuda")
        recipe.set_trained(network, freeze=configuration.freeze)
        recipe.set_mode(network, freeze=configuration.freeze)
        self.optimizer = recipe.make_optimizer(network, configuration)
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.average = recipe.make_average(network, configuration.ema) if configuration.ema else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=configuration.amp == "float16")
        self.weights = recipe.class_weights(data.labels, len(data.classes)) if configuration.class_weights else None
        self.wrapped = ranks.wrap(network, device)
        self.waited_s = self.ran_s = 0.0

    @property
    def shown(self) -> HiFuse:
        """The network that is validated and written for others: the moving average where there is one."""
        return self.network if self.average is None else self.average.module  # type: ignore[return-value]

    def state(self, facts: Mapping[str, Any]) -> State:
        """What `restore` needs. The tensors are the run's own, and so to be written before the next step."""
        tensors = {f"network/{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizer_tensors(self.optimizer).items()}
        if self.average is not None:
            tensors |= {f"average/{name}": tensor for name, tensor in self.average.state_dict().items()}
        return State(tensors, self.progress, {**facts, "scaler": self.scaler.state_dict()})

    def restore(self, state: State) -> None:
        """Go on where `state` was taken; ValueError where that was another network, or is no place."""
        if state.progress.position > self.feed.steps_per_epoch and state.facts["world"] == self.ranks.world:
            raise ValueError(f"the state is at step {state.progress.position} of an epoch of {self.feed.steps_per_epoch}")
        try:
            self.network.load_state_dict(state.part("network/"))
            restore_optimizer(self.optimizer, state.part("optimizer/"))
            if self.average is not None:
                self.average.load_state_dict(state.part("average/"))
            self.scaler.load_state_dict(dict(state.facts["scaler"]))
        except (RuntimeError, ValueError, KeyError) as error:  # PyTorch's word for tensors that do not fit is RuntimeError
            raise ValueError(f"the state does not fit the network of its configuration: {error}") from None
        self.progress = state.progress

    def run(self, keeper: Keeper, stop: Callable[[], int]) -> None:
        """Train to the end.

        Args:
            keeper: told when to write.
            stop: asked after every step for the number of a signal, by which the run ends after the state is written.

        Raises:
            Stopped: it was told to stop.
            ValueError: a loss, a gradient or an output is not finite, or an image cannot be read.
        """
        begun = time.monotonic()
        batches = self._timed(self.feed.training(self.progress.epoch, self.progress.position))
        while self.progress.epoch < self.configuration.epochs:
            self._run_epoch(batches, keeper, stop)
            keeper.end_epoch(self, self._end_epoch())
            self.ran_s = time.monotonic() - begun
            if (signal := self._signal(stop)) and self.progress.epoch < self.configuration.epochs:
                raise self._stopped(signal)

    def _run_epoch(self, batches: Iterator[Batch], keeper: Keeper, stop: Callable[[], int]) -> None:
        steps = self.feed.steps(self.progress.epoch)
        with progress(len(self.feed.labels), shown=self.ranks.is_first) as on_progress:
            for number, step in enumerate(steps[self.progress.position :], self.progress.position + 1):
                signal = self._step(batches, step, stop)
                on_progress(int(self.progress.seen))
                if signal:
                    keeper.save(self)
                    raise self._stopped(signal)
                if (
                    self.configuration.save_every
                    and self.progress.step % self.configuration.save_every == 0
                    and number < len(steps)
                ):
                    keeper.save(self)

    def _step(self, batches: Iterator[Batch], step: Step, stop: Callable[[], int]) -> int:
        """One step, on all parts of the batch that are this process's; the number of a signal that any process was sent."""
        done = self.progress
        lr = self.configuration.lr * recipe.factor_of(done.step, self.feed.steps_per_epoch, self.configuration)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        labels = torch.tensor([self.feed.labels[draw.image] for part in step for draw in part])
        weight = float(len(labels) if self.weights is None else self.weights[labels].sum())
        parts = []
        for part in self.feed.own:
            batch = next(batches)
            last = part == self.feed.own[-1]
            with contextlib.nullcontext() if last or self.ranks.world == 1 else self.wrapped.no_sync():  # type: ignore[operator]
                parts.append((batch, *self._forward_and_backward(batch, part, weight)))
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        loss, correct, size = torch.stack([
            torch.stack([losses.sum() for _, losses, _ in parts]).sum(), torch.stack([right for *_, right in parts]).sum(), norm
        ]).tolist()  # fmt: skip
        self._check_finite(loss, size, step, [(batch, losses) for batch, losses, _ in parts])
        if self.configuration.clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.configuration.clip, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.network)
        loss, correct = self.ranks.sum([loss, correct])
        done.loss, done.weight, done.correct = done.loss + loss, done.weight + weight, done.correct + correct
        done.step, done.position, done.seen = done.step + 1, done.position + 1, done.seen + len(labels)
        return self._signal(stop)

    def _signal(self, stop: Callable[[], int]) -> int:
        """The number of a signal that any process was sent, on every one of them; 0 where none was."""
        return int(self.ranks.largest(float(stop())))

    def _stopped(self, signal: int) -> Stopped:
        error = Stopped(signal)
        error.add_note(f"the state after step {self.progress.step} is written, and --resume goes on from there")
        return error

    def _forward_and_backward(self, batch: Batch, part: int, weight: float) -> tuple[Tensor, Tensor]:
        """Add the gradients of a part; its losses, and how many images were told right."""
        images = batch.images.to(self.device, non_blocking=True)
        labels = batch.labels.to(self.device, non_blocking=True)
        seed = seed_of(self.configuration.seed, DROPOUT, self.progress.step, part).generate_state(1, np.uint64)[0]
        torch.manual_seed(int(seed) >> 1)
        with self._autocast():
            logits = self.wrapped(images)
        losses = recipe.losses_of(logits, labels, self.weights, self.configuration)
        self.scaler.scale(losses.sum() * (self.ranks.world / weight)).backward()  # DistributedDataParallel takes the mean
        return losses.detach().float(), (logits.detach().argmax(-1) == labels).sum().float()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        dtype = _DTYPES.get(self.configuration.amp)
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def _check_finite(self, loss: float, norm: float, step: Step, parts: list[tuple[Batch, Tensor]]) -> None:
        """Raise ValueError, with the names of files, before a step that would end the network."""
        waits = self.scaler.is_enabled() and self.scaler.get_scale() > _SMALLEST_SCALE  # the next step has a smaller scale
        if math.isfinite(loss) and (math.isfinite(norm) or waits):
            return
        what = "gradient" if math.isfinite(loss) else "loss"
        wrong = [
            index for batch, losses in parts
            for index, finite in zip(batch.indices, losses.isfinite().tolist(), strict=True) if not finite
        ]  # fmt: skip
        images = wrong or [draw.image for part in step for draw in part]
        names = ", ".join(str(self.data.train[image].path) for image in images[:_NAMED])
        more = f" and {len(images) - _NAMED} more" if len(images) > _NAMED else ""
        raise ValueError(
            f"the {what} of step {self.progress.step + 1} (epoch {self.progress.epoch + 1}) is not finite, with the images "
            f"{names}{more}; what was written before is whole"
        )

    def _end_epoch(self) -> dict[str, Any]:
        """Validate, and begin the next epoch; the row of the log."""
        done, scores = self.progress, self._validate()
        lr = self.configuration.lr * recipe.factor_of(done.step - 1, self.feed.steps_per_epoch, self.configuration)
        score = scores[self.configuration.best]
        best = not math.isnan(score) and (done.best is None or score > done.best)
        row = {
            "epoch": done.epoch + 1, "step": done.step, "lr": lr,
            "train_loss": done.loss / done.weight, "train_accuracy": done.correct / done.seen,
            **{f"val_{name}": value for name, value in scores.items()}, "best": int(best),
        }  # fmt: skip
        if best:
            done.best, done.best_epoch = score, done.epoch + 1
        self.progress = Progress(done.step, done.epoch + 1, best=done.best, best_epoch=done.best_epoch, rows=[*done.rows, row])
        return row

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        network, outputs = self.shown.eval(), [torch.zeros(0, len(self.data.classes))]
        for batch in self.feed.validation():
            with self._autocast():
                logits = network(batch.images.to(self.device, non_blocking=True)).float().cpu()
            if not logits.isfinite().all():
                wrong = batch.indices[int((~logits.isfinite().all(1)).nonzero()[0])]
                raise ValueError(f"the network's output is not finite for the validation image {self.data.val[wrong].path}")
            outputs.append(logits)
        recipe.set_mode(self.network, freeze=self.configuration.freeze)
        logits = self.ranks.gather(torch.cat(outputs), len(self.data.val))
        return scores_of(logits, torch.tensor([self.data.classes.index(example.label) for example in self.data.val]))

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; the time is counted that is spent waiting for them."""
        while True:
            begun = time.monotonic()
            batch = next(batches, None)
            if batch is None:
                return
            self.waited_s += time.monotonic() - begun
            yield batch
