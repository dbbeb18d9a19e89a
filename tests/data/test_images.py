"""images.py: which files are found, what each kind of file decodes to, and the arithmetic of the preprocessing."""

import io
import os
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from hifuse_fast.data.images import ImageError, Preprocess, list_images, load_image


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG file by hand: header, one data chunk with `rows` (each led by its filter byte), end."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# ---- list_images


def test_list_is_recursive_sorted_by_suffix_and_without_duplicates(tmp_path, monkeypatch):
    for name in ("b.PNG", "a b.jpeg", "ü.tif", "sub/c.webp", "notes.txt", ".hidden.png", "d.png.bak", "sub/._c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.relative_to(tmp_path).as_posix() for path in list_images([tmp_path])]
    assert names == ["a b.jpeg", "b.PNG", "sub/c.webp", "ü.tif"]
    monkeypatch.chdir(tmp_path)
    listed = list_images(["notes.txt", tmp_path / "b.PNG", ".", "sub/../notes.txt"])
    assert [path.name for path in listed] == ["notes.txt", "b.PNG", "a b.jpeg", "c.webp", "ü.tif"]


def test_list_names_what_is_missing(tmp_path):
    assert list_images([tmp_path]) == []
    with pytest.raises(FileNotFoundError, match=r"absent\.png: no such file or folder"):
        list_images([tmp_path / "absent.png"])
    with pytest.raises(TypeError, match="sequence of files"):
        list_images("a.png")


# ---- load_image


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp", "ppm"])
def test_load_formats(tmp_path, suffix):
    path = tmp_path / f"image.{suffix}"
    noise(20, 30).save(path, lossless=True, quality=95)
    image = load_image(path)
    assert (image.mode, image.size) == ("RGB", (30, 20))
    if suffix != "jpg":
        np.testing.assert_array_equal(np.asarray(image), np.asarray(noise(20, 30)))


def test_the_content_decides_not_the_name(tmp_path):
    noise(4, 4).save(tmp_path / "x.png", "BMP")
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "x.png")), np.asarray(noise(4, 4)))
    noise(4, 4).save(tmp_path / "y.png", "GIF")  # a format that Pillow knows and FORMATS does not
    with pytest.raises(ImageError, match=r"y\.png: not an image that can be read \(PNG, "):
        load_image(tmp_path / "y.png")


SIXTEEN_BITS = np.array([[0, 255, 256, 4095, 32768, 65535]], dtype=np.uint16)
HIGH_BYTES = [0, 0, 1, 15, 128, 255]


def sixteen_bit_files() -> dict[str, bytes]:
    tiff = io.BytesIO()
    Image.fromarray(SIXTEEN_BITS).save(tiff, "TIFF")
    big_endian = SIXTEEN_BITS.astype(">u2").tobytes()
    return {
        "grey.png": png(6, 1, 16, 0, b"\0" + big_endian),
        "grey.tif": tiff.getvalue(),
        "grey.pgm": b"P5\n6 1\n65535\n" + big_endian,
        "colour.png": png(6, 1, 16, 2, b"\0" + SIXTEEN_BITS.repeat(3).astype(">u2").tobytes()),
    }


@pytest.mark.parametrize("name", sixteen_bit_files())
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, name):
    (tmp_path / name).write_bytes(sixteen_bit_files()[name])
    pixels = np.asarray(load_image(tmp_path / name))
    assert pixels[0].tolist() == [[value] * 3 for value in HIGH_BYTES]


def test_other_modes_give_what_convert_gives(tmp_path):
    colour = noise(6, 5)
    alpha = Image.fromarray(np.full((6, 5), 7, dtype=np.uint8))
    grey = colour.convert("L")
    palette = colour.quantize(8)
    cases = {
        "grey.png": (grey, np.asarray(grey)[..., None].repeat(3, 2)),
        "bits.png": (grey.point(lambda v: 255 * (v > 127), "1"), 255 * (np.asarray(grey)[..., None] > 127).repeat(3, 2)),
        "alpha.png": (Image.merge("RGBA", (*colour.split(), alpha)), np.asarray(colour)),
        "grey-alpha.png": (Image.merge("LA", (grey, alpha)), np.asarray(grey)[..., None].repeat(3, 2)),
        "palette.png": (palette, np.array(palette.getpalette()).reshape(-1, 3)[np.asarray(palette)]),
        "inks.tif": (Image.new("CMYK", (5, 6), (255, 0, 0, 0)), np.broadcast_to([0, 255, 255], (6, 5, 3))),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name)
        np.testing.assert_array_equal(np.asarray(load_image(tmp_path / name)), expected, err_msg=name)


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show"
    noise(10, 20).save(tmp_path / "turned.png", exif=exif)
    assert load_image(tmp_path / "turned.png").size == (20, 10)


def test_first_page_of_several(tmp_path):
    noise(4, 4, 1).save(tmp_path / "pages.tif", save_all=True, append_images=[noise(4, 4, 2)])
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "pages.tif")), np.asarray(noise(4, 4, 1)))


def test_pixel_limit_is_checked_before_decoding(tmp_path):
    (tmp_path / "large.png").write_bytes(png(1000, 501, 8, 0, b"no rows at all"))
    with pytest.raises(ImageError, match=r"large\.png: 1000 x 501 pixels are more than the limit of 500000"):
        load_image(tmp_path / "large.png", max_pixels=500_000)
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_image(tmp_path / "large.png", max_pixels=501_000)


def test_decompression_bomb(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png(60000, 60000, 8, 2, b""))
    with pytest.raises(ImageError, match=r"bomb\.png: .*3600000000 pixels"):
        load_image(tmp_path / "bomb.png")


def test_unreadable_files_name_the_file_and_the_reason(tmp_path):
    noise(64, 64).save(tmp_path / "whole.png")
    noise(64, 64).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.png").read_bytes()
    cases = {
        "empty.png": (b"", "not an image"),
        "text.png": (b"I am no image\n" * 50, "not an image"),
        "short.png": (whole[: len(whole) // 2], "truncated"),
        "short.jpg": ((tmp_path / "whole.jpg").read_bytes()[:-500], "truncated"),
        "header.png": (whole[:30], "cannot be decoded|not an image"),
        "flat.png": (png(0, 5, 8, 0, b""), "not an image|no pixels"),
        "float.tif": (None, "32-bit greyscale"),
    }
    Image.fromarray(np.ones((3, 3), dtype=np.float32)).save(tmp_path / "float.tif")
    for name, (content, reason) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=f"{name}: .*({reason})"):
            load_image(tmp_path / name)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_bytes_raise_image_errors_only(tmp_path):
    rng = np.random.default_rng(0)
    messages = []
    for suffix in ("png", "jpg", "tif", "webp", "bmp", "ppm"):
        path = tmp_path / f"x.{suffix}"
        noise(16, 16).save(path)
        good = path.read_bytes()
        for _ in range(40):
            bad = bytearray(good)
            for position in rng.integers(0, min(len(bad), 200), 4):
                bad[position] = rng.integers(256)
            path.write_bytes(bad)
            try:
                assert load_image(path, max_pixels=10**6).mode == "RGB"
            except ImageError as error:
                messages.append(str(error))
    assert len(messages) > 50  # the damage is real
    assert all(message.startswith(f"{tmp_path}{os.sep}x.") for message in messages)


def test_absent_files_folders_and_pipes(tmp_path):
    names = ["absent.png", "."]
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for a writer for ever
        names.append("pipe.png")
    for name in names:
        with pytest.raises(ImageError, match="not a regular one"):
            load_image(tmp_path / name)


# ---- Preprocess. torchvision is not needed: expectations are worked out by hand from its public arithmetic.


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
    with pytest.raises(ImageError, match="1000000 x 1 pixels, resized to a shorter side of 256"):
        Preprocess()(Image.new("RGB", (1_000_000, 1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size must be a positive integer, got 0"),
        ({"resize": 2.5}, "resize must be a positive integer, got 2.5"),
        ({"mean": (0.5, 0.5)}, "mean must be three finite numbers"),
        ({"std": (1, 1, float("nan"))}, "std must be three finite numbers"),
        ({"std": (1, 0, 1)}, "std must be positive"),
        ({"interpolation": "cubic"}, "interpolation must be one of nearest, bilinear"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(**options)
