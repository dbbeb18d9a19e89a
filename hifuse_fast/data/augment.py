"""Random changes of training images. Every draw comes from the generator that a call is given."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance
from torch import Tensor

from hifuse_fast.data.images import normalised

_ATTEMPTS = 10
_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@dataclass(frozen=True)
class Augment:
    """8-bit RGB image -> [3, image_size, image_size] float32: a random crop, resized and flipped, then (x - mean) / std.

    The defaults are the official training script's: RandomResizedCrop and RandomHorizontalFlip of torchvision.

    Args:
        image_size: side of the result in pixels.
        mean, std: of R, G, B, on the scale [0, 1].
        min_scale: the crop has at least this part of the image's area, and at most all of it.
        flip: whether half of the images are mirrored, left to right.
        rotation: they are turned by up to so many degrees, either way; the corners become black.
        colour_jitter: j: brightness, contrast and saturation, in a drawn order, each times a factor in [max(0, 1 - j), 1 + j].

    Source: torchvision.transforms.
    """

    image_size: int = 224
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    min_scale: float = 0.08
    flip: bool = True
    rotation: float = 0.0
    colour_jitter: float = 0.0

    def __call__(self, image: Image.Image, draw: np.random.Generator) -> Tensor:
        box = crop_box(*image.size, self.min_scale, draw)
        image = image.crop(box).resize((self.image_size, self.image_size), Image.Resampling.BILINEAR)
        if self.flip and draw.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.rotation:
            image = image.rotate(draw.uniform(-self.rotation, self.rotation), Image.Resampling.BILINEAR)
        if self.colour_jitter:
            for i in draw.permutation(len(_ENHANCERS)):
                factor = draw.uniform(max(0.0, 1 - self.colour_jitter), 1 + self.colour_jitter)
                image = _ENHANCERS[i](image).enhance(factor)
        return normalised(image, self.mean, self.std)


def crop_box(width: int, height: int, min_scale: float, draw: np.random.Generator) -> tuple[int, int, int, int]:
    """A crop of a drawn area and of a drawn ratio of its sides, from 3:4 to 4:3; in the middle where none was found that fits.

    Source: torchvision.transforms.RandomResizedCrop.
    """
    low, high = 3 / 4, 4 / 3
    for _ in range(_ATTEMPTS):
        area = width * height * draw.uniform(min_scale, 1.0)
        ratio = math.exp(draw.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(draw.integers(width - w + 1)), int(draw.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * high)), min(height, round(width / low))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
