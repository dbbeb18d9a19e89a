"""The images of a run: which ones a step takes, and which of these are this process's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hifuse_fast.app.training import recipe
from hifuse_fast.app.training.configuration import Configuration
from hifuse_fast.app.training.ranks import Ranks
from hifuse_fast.data.augment import Augment
from hifuse_fast.data.dataset import Batch, Failed, ImageSet, load
from hifuse_fast.data.draws import Draw, batches_of, draws_of, order_of, parts_of
from hifuse_fast.data.examples import Example
from hifuse_fast.data.samples import ImageError

#: The draws of a step: its parts, first those of rank 0.
Step = list[list[Draw]]


@dataclass(frozen=True)
class Data:
    """Examples to train on and to validate with, the names of their classes, and a hash of all of them."""

    train: list[Example]
    val: list[Example]
    classes: list[str]
    hash: str

    @property
    def labels(self) -> list[int]:
        """The classes of the training examples, as indices."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        return [numbers[example.label] for example in self.train]


class Feed:
    """Batches of images for this process."""

    def __init__(self, configuration: Configuration, data: Data, ranks: Ranks, *, greyscale: bool, pin: bool) -> None:
        c = self.configuration = configuration
        self.ranks, self.pin, self.labels = ranks, pin, data.labels
        reading = c.reading()
        augment = Augment(c.image_size, c.mean, c.std, c.min_scale, c.flip, c.rotation, c.colour_jitter)
        self._train = ImageSet(data.train, data.classes, reading, augment, c.seed, greyscale)
        self._val = ImageSet(data.val, data.classes, reading, c.preprocess(), c.seed, greyscale)
        self._weights = (
            recipe.class_weights(self.labels, len(data.classes))[self.labels].numpy() if c.weighted_sampler else None
        )
        self.steps_per_epoch = len(self.steps(0))

    @property
    def parts(self) -> int:
        """The parts of a batch, over all ranks and accumulation."""
        return self.ranks.world * self.configuration.accumulate

    @property
    def own(self) -> range:
        """Those of this process."""
        return range(self.parts)[self.ranks.rank * self.configuration.accumulate :][: self.configuration.accumulate]

    def steps(self, epoch: int) -> list[Step]:
        """The steps of an epoch."""
        order = order_of(self.configuration.seed, epoch, len(self.labels), self._weights)
        draws = iter(draws_of(epoch, order))
        return [
            [[next(draws) for _ in part] for part in parts_of(batch, self.parts)]
            for batch in batches_of(order, self.configuration.batch_size, self.parts)
        ]

    def training(self, epoch: int, position: int) -> Iterator[Batch]:
        """This process's parts of all steps, from a step of an epoch on to the end of the run."""

        def parts() -> Iterator[list[Draw]]:
            for number in range(epoch, self.configuration.epochs):
                for step in self.steps(number)[position if number == epoch else 0 :]:
                    yield from (step[part] for part in self.own)

        return _readable(load(self._train, parts(), self.configuration.workers, pin=self.pin))

    def validation(self) -> Iterator[Batch]:
        """This process's images of validation, of which it has every `world`-th."""
        own = range(self.ranks.rank, len(self._val), self.ranks.world)
        size = -(-self.configuration.batch_size // self.parts)
        batches = [[Draw(0, index) for index in own[start : start + size]] for start in range(0, len(own), size)]
        return _readable(load(self._val, batches, self.configuration.workers, pin=self.pin))


def _readable(batches: Iterable[Batch | Failed]) -> Iterator[Batch]:
    for batch in batches:
        if isinstance(batch, Failed):
            raise ImageError(batch.reason)
        yield batch
