"""resize.py: the bits of Pillow's resize and crop, in memory for the crop."""

import numpy as np
import pytest
from PIL import Image

from hifuse_fast.data import resize
from hifuse_fast.data.images import INTERPOLATIONS, Preprocess
from hifuse_fast.data.resize import resize_and_crop
from tests.support.images import noise


def expected(image, size, box, interpolation):
    return image.resize(size, Image.Resampling[interpolation.upper()]).crop(box)


def check(image, size, box, interpolation):
    result = resize_and_crop(image, size, box, interpolation)
    assert result.size == (box[2] - box[0], box[3] - box[1])
    wanted = expected(image, size, box, interpolation)
    np.testing.assert_array_equal(np.asarray(result), np.asarray(wanted), err_msg=f"{image.size} {size} {box}")


@pytest.mark.parametrize("strip", [1, 999, resize.STRIP])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_same_bits_for_sizes_and_boxes_by_chance(interpolation, strip, monkeypatch):
    monkeypatch.setattr(resize, "STRIP", strip)
    rng = np.random.default_rng(0)
    for seed in range(40):
        height, width, new_height, new_width = (int(2 ** rng.uniform(0, 7)) for _ in range(4))
        left, top = (int(rng.integers(-5, length)) for length in (new_width, new_height))
        right, bottom = left + 1 + int(rng.integers(40)), top + 1 + int(rng.integers(40))
        if right > 0 and bottom > 0:
            check(noise(height, width, seed), (new_width, new_height), (left, top, right, bottom), interpolation)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("preprocess", [Preprocess(), Preprocess(224, 200), Preprocess(32, 41)])
def test_same_bits_for_images_as_they_come(interpolation, preprocess):
    for height, width in ((224, 224), (300, 257), (91, 400), (400, 91), (1, 1), (341, 255), (3, 50), (50, 3)):
        size = preprocess._resized(width, height)
        check(noise(height, width), size, preprocess._crop_box(*size), interpolation)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("height", "width"), [(700, 1), (1, 700), (1501, 2)])
def test_same_bits_for_long_images(interpolation, height, width):
    preprocess = Preprocess(24, 28)
    size = preprocess._resized(width, height)
    check(noise(height, width), size, preprocess._crop_box(*size), interpolation)


@pytest.mark.parametrize(("height", "width"), [(2700, 1), (1, 2700)])
def test_memory_is_for_the_crop(height, width, monkeypatch):
    """The resized image would have 64 x 172800 pixels. With 256 x 691200 it was 680 MiB, as Pillow keeps it."""
    sizes = []
    resized = Image.Image.resize

    def recorded(image, size, *arguments):
        sizes.append(size[0] * size[1])
        return resized(image, size, *arguments)

    monkeypatch.setattr(Image.Image, "resize", recorded)
    monkeypatch.setattr(resize, "STRIP", 2**18)
    assert Preprocess(16, 64)(noise(height, width)).shape == (3, 16, 16)
    assert max(sizes) <= 2**18
