"""images.py: the arithmetic of the preprocessing. torchvision is not needed: expectations are worked out by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from hifuse_fast.data.images import ImageError, Preprocess
from tests.support.images import noise


@pytest.mark.parametrize(
    ("height", "width", "resize", "expected"),
    [
        (256, 256, 256, (256, 256)),
        (300, 500, 256, (256, 426)),  # 256 * 500 / 300 = 426.67, rounded down
        (500, 300, 256, (426, 256)),
        (100, 101, 256, (256, 258)),  # 258.56
        (7, 3, 64, (149, 64)),  # 149.33
        (1, 40, 64, (64, 2560)),
        (256, 999, 256, (256, 999)),  # the shorter side is right already: nothing changes
    ],
)
def test_resized_size(height, width, resize, expected):
    assert Preprocess(resize=resize)._resized(width, height) == expected[::-1]


@pytest.mark.parametrize(
    ("length", "crop", "start"),
    [
        (256, 224, 16),
        (257, 224, 16),  # 16.5 goes to the even 16
        (259, 224, 18),  # 17.5 goes to the even 18
        (225, 224, 0),  # 0.5 goes to 0
        (227, 224, 2),  # 1.5 goes to 2
        (224, 224, 0),
        (223, 224, 0),  # padding of 1 // 2 before and (1 + 1) // 2 behind
        (221, 224, -1),  # 3 // 2 before, 2 behind
        (1, 224, -111),
    ],
)
def test_crop_offsets(length, crop, start):
    assert Preprocess(image_size=crop)._crop_start(length) == start


def normalised(pixels: np.ndarray, preprocess: Preprocess) -> torch.Tensor:
    """[3, H, W] of (v / 255 - mean) / std, one float32 rounding an operation."""
    x = np.float32(pixels.transpose(2, 0, 1)) / np.float32(255)
    mean, std = (np.float32(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
    return torch.from_numpy((x - mean) / std)


def test_values_without_resizing_are_exact():
    preprocess = Preprocess(image_size=5, resize=8, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    pixels = np.asarray(noise(8, 11))
    out = preprocess(Image.fromarray(pixels))
    # rows (8 - 5) / 2 = 1.5 -> 2, columns (11 - 5) / 2 = 3
    assert torch.equal(out, normalised(pixels[2:7, 3:8], preprocess))
    assert out.dtype == torch.float32
    assert out.is_contiguous()


def test_smaller_than_the_crop_is_centred_on_black():
    preprocess = Preprocess(image_size=8, resize=5)
    pixels = np.asarray(noise(5, 11))
    canvas = np.zeros((8, 8, 3), dtype=np.uint8)
    canvas[1:6] = pixels[:, 2:10]  # rows: (8 - 5) // 2 = 1 above; columns: (11 - 8) / 2 = 1.5 -> 2
    assert torch.equal(preprocess(Image.fromarray(pixels)), normalised(canvas, preprocess))


def test_bilinear_shrinking_is_antialiased():
    # Halving with the widened triangle filter: weights 1/8, 3/8, 3/8, 1/8; at an edge 3/7, 3/7, 1/7 (renormalised).
    columns = np.array([0, 0, 255, 0, 0, 0, 0, 0], dtype=np.uint8)
    image = Image.fromarray(np.tile(columns[None, :, None], (8, 1, 3)))
    out = Preprocess(image_size=4, resize=4, mean=(0, 0, 0), std=(1, 1, 1))(image)
    expected = torch.tensor([round(255 / 7), round(255 * 3 / 8), 0, 0]) / 255
    torch.testing.assert_close(out, expected.expand(3, 4, 4), rtol=0, atol=1e-7)


def test_interpolation_is_used():
    image = noise(64, 64)
    bilinear, nearest = (Preprocess(32, 32, interpolation=name)(image) for name in ("bilinear", "nearest"))
    assert torch.equal(nearest, normalised(np.asarray(image)[1::2, 1::2], Preprocess()))
    assert not torch.equal(bilinear, nearest)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1), (3, 1000), (224, 223)])
def test_every_shape_gives_the_same_shape(height, width):
    assert Preprocess(64, 73)(noise(height, width)).shape == (3, 64, 64)


def test_extreme_aspect_does_not_fill_the_memory():
    reason = "1000000 x 1 pixels, resized to a shorter side of 256, would be 256000000 pixels long, which is more than 4194304"
    with pytest.raises(ImageError, match=reason):
        Preprocess()(Image.new("RGB", (1_000_000, 1)))
    assert Preprocess(4, 5)(Image.new("RGB", (800_000, 1))).shape == (3, 4, 4)


def test_images_of_other_modes_are_right_or_refused():
    preprocess = Preprocess(image_size=4, resize=4)
    deep = np.random.default_rng(0).integers(0, 65536, (4, 4), dtype=np.uint16)
    high_bytes = (deep >> 8).astype(np.uint8)[..., None].repeat(3, 2)
    assert torch.equal(preprocess(Image.fromarray(deep)), normalised(high_bytes, preprocess))
    for mode in ("I", "F"):
        with pytest.raises(ImageError, match="32-bit greyscale has no known range"):
            preprocess(Image.new(mode, (4, 4)))
    with pytest.raises(ImageError, match="has no pixels"):
        preprocess(Image.new("RGB", (4, 0)))


@pytest.mark.parametrize("path_or_handle", ["path", "handle"])
def test_a_turned_image_that_pillow_opened_is_taken_as_stored(tmp_path, path_or_handle):
    preprocess = Preprocess(image_size=4, resize=4)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 7), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "x.tif", exif=exif)
    with (tmp_path / "x.tif").open("rb") as file, Image.open(file if path_or_handle == "handle" else file.name) as image:
        assert torch.equal(preprocess(image), preprocess(Image.fromarray(pixels)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size must be a positive integer, got 0"),
        ({"resize": 2.5}, "resize must be a positive integer, got 2.5"),
        ({"mean": (0.5, 0.5)}, "mean must be three finite numbers"),
        ({"std": (1, 1, float("nan"))}, "std must be three finite numbers"),
        ({"std": (1, 0, 1)}, "std must be positive"),
        ({"mean": (123.675, 116.28, 103.53)}, r"mean must be on the scale \[0, 1\], got \(123.675, .* divided by 255"),
        ({"std": (58.395, 57.12, 57.375)}, r"std must be on the scale \[0, 1\], got \(58.395, .* divided by 255"),
        ({"mean": (-0.1, 0.5, 0.5)}, r"mean must be on the scale \[0, 1\]"),
        ({"interpolation": "cubic"}, "interpolation must be one of nearest, bilinear"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(**options)
