"""dataset.py: the same bits whatever the workers; a file that fails is named."""

from itertools import chain

import pytest
import torch

from hifuse_fast.data.augment import Augment
from hifuse_fast.data.check import Reading
from hifuse_fast.data.dataset import Failed, ImageSet, load
from hifuse_fast.data.draws import Draw, batches_of, draws_of, order_of
from hifuse_fast.data.examples import read_examples
from hifuse_fast.data.images import Preprocess, load_image
from tests.support.examples import save_splits


@pytest.fixture
def examples(tmp_path):
    return [e for e in read_examples(save_splits(tmp_path / "data", 5, 1)) if e.split == "train"]


def batches(seed, epochs, count, size):
    for epoch in epochs:
        draws = draws_of(epoch, order_of(seed, epoch, count))
        for batch in batches_of(order_of(seed, epoch, count), size, 1):
            yield [draws.pop(0) for _ in batch]


def test_workers_do_not_change_the_bits_nor_does_a_later_start(examples):
    images = ImageSet(examples, ["dark", "light"], Reading(), Augment(16, rotation=10, colour_jitter=0.2), seed=7)
    global_state = torch.get_rng_state()
    alone = list(load(images, batches(7, (0, 1), 10, 4), 0))
    assert (torch.get_rng_state() == global_state).all()
    both = list(load(images, batches(7, (0, 1), 10, 4), 2))
    later = list(load(images, batches(7, (1,), 10, 4), 1))
    assert [len(batch.labels) for batch in alone] == [4, 4, 2] * 2
    for one, other in (*zip(alone, both, strict=True), *zip(alone[3:], later, strict=True)):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert one.indices == other.indices
    assert sorted(chain(*(batch.indices for batch in alone[:3]))) == list(range(10))


def test_images_without_augmentation_are_those_of_predict(examples):
    preprocess = Preprocess(16, 20)
    (batch,) = load(ImageSet(examples, ["dark", "light"], Reading(), preprocess), [[Draw(0, 7), Draw(0, 2)]], 0)
    assert torch.equal(batch.images[0], preprocess(load_image(examples[7].path)))
    assert batch.labels.tolist() == [1, 0]
    (grey,) = load(ImageSet(examples, ["dark", "light"], Reading(), preprocess, greyscale=True), [[Draw(0, 7)]], 0)
    assert torch.equal(grey.images[0], preprocess(load_image(examples[7].path).convert("L"))[:1])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_fails_is_named(examples, workers):
    examples[3].path.write_text("no image any more")
    (batch,) = load(ImageSet(examples, ["dark", "light"], Reading(), Preprocess(16)), [[Draw(0, 1), Draw(0, 3)]], workers)
    assert isinstance(batch, Failed)
    assert batch.reason.startswith(f"{examples[3].path}: not an image")
