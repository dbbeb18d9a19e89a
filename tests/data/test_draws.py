"""draws.py: every image once an epoch, whatever is cut; nothing drawn from a global state."""

import numpy as np
import pytest
import torch

from hifuse_fast.data.draws import Draw, batches_of, draws_of, generator, order_of, parts_of


def test_the_order_is_a_permutation_of_seed_and_epoch():
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    orders = [order_of(seed, epoch, 50) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert (order_of(0, 1, 50) == orders[1]).all()
    assert (np.random.get_state()[1] == state[0]).all()
    assert (torch.get_rng_state() == state[1]).all()


@pytest.mark.parametrize("count", [8, 9, 31, 32, 33, 40])
@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_every_image_comes_once_and_no_part_is_empty(count, parts):
    batches = batches_of(order_of(0, 0, count), 8, parts)
    cut = [part for batch in batches for part in parts_of(batch, parts)]
    assert sorted(np.concatenate(cut)) == list(range(count))
    assert min(map(len, cut)) >= 1
    for batch in batches:
        sizes = [len(part) for part in parts_of(batch, parts)]
        assert max(sizes) - min(sizes) <= 1


def test_a_batch_smaller_than_its_parts_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 4"):
        batches_of(order_of(0, 0, 100), 3, 4)
    with pytest.raises(ValueError, match="number of training images must be at least 4"):
        batches_of(order_of(0, 0, 3), 8, 4)


def test_with_weights_rare_images_come_often_and_each_time_anew():
    order = order_of(0, 3, 400, [1.0] * 390 + [39.0] * 10)
    rare = (order >= 390).mean()
    assert 0.4 < rare < 0.6
    draws = draws_of(3, order)
    assert len(set(draws)) == 400
    assert [draw.image for draw in draws] == order.tolist()
    assert {draw.epoch for draw in draws} == {3}
    repeated = max(draws, key=lambda draw: draw.repeat)
    one = generator(0, *repeated).random()
    assert one == generator(0, *repeated).random() != generator(0, *Draw(3, repeated.image, 0)).random()
