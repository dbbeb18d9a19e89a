"""augment.py: what changes is drawn from the generator that is given, within the limits of the options."""

import numpy as np
import pytest
import torch
from PIL import Image

from hifuse_fast.data.augment import Augment, crop_box
from hifuse_fast.data.draws import generator
from hifuse_fast.data.images import normalised
from tests.support.images import noise


def test_the_same_generator_the_same_bits():
    augment = Augment(32, rotation=20, colour_jitter=0.4)
    image = noise(50, 41)
    assert torch.equal(augment(image, generator(1, 2, 3)), augment(image, generator(1, 2, 3)))
    assert not torch.equal(augment(image, generator(1, 2, 3)), augment(image, generator(1, 2, 4)))
    assert augment(image, generator(0)).shape == (3, 32, 32)


@pytest.mark.parametrize(("width", "height"), [(200, 150), (31, 300), (1, 1), (5, 2)])
def test_crops_lie_in_the_image_and_have_the_drawn_areas(width, height):
    draw = generator(0)
    for _ in range(200):
        left, top, right, bottom = crop_box(width, height, 0.25, draw)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        if (width, height) == (200, 150):
            assert 0.24 <= (right - left) * (bottom - top) / (width * height) <= 1
            assert 0.74 <= (right - left) / (bottom - top) <= 1.35


def test_crops_have_the_distribution_of_torchvision():
    """The mean area of RandomResizedCrop(scale=(0.08, 1)) on a square, where crops that do not fit are drawn again."""
    draw = generator(0)
    boxes = np.array([crop_box(224, 224, 0.08, draw) for _ in range(4000)])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 224**2
    assert areas.mean() == pytest.approx(0.5, abs=0.03)
    assert areas.min() < 0.09
    assert areas.max() > 0.9
    assert boxes[:, 0].mean() == pytest.approx(boxes[:, 1].mean(), rel=0.1)


def test_half_of_the_images_are_mirrored():
    image = Image.fromarray(np.tile(np.arange(0, 200, 10, dtype=np.uint8)[None, :, None], (20, 1, 3)))
    falling = [bool((x := Augment(16)(image, generator(i)))[0, 8, 0] > x[0, 8, -1]) for i in range(200)]
    assert 70 < sum(falling) < 130
    never = [bool((x := Augment(16, flip=False)(image, generator(i)))[0, 8, 0] > x[0, 8, -1]) for i in range(50)]
    assert not any(never)


def test_rotation_and_jitter_do_what_they_say():
    grey = Image.new("RGB", (40, 40), (100, 100, 100))
    plain = normalised(grey.resize((16, 16)), (0.5,) * 3, (0.5,) * 3)
    assert torch.equal(Augment(16)(grey, generator(0)), plain)
    turned = Augment(16, rotation=90)(grey, generator(1))
    assert turned.min() == -1  # a black corner
    jittered = [Augment(16, colour_jitter=0.3)(grey, generator(i)) for i in range(50)]
    shades = torch.stack([(x.mean() * 0.5 + 0.5) * 255 for x in jittered])
    assert shades.min() > 69
    assert shades.max() < 131
    assert shades.std() > 5
