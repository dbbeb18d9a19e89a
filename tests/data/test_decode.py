"""decode.py: what each kind of file decodes to, and how what cannot be decoded is named."""

import io
import os
import sys

import numpy as np
import pytest
from PIL import Image

from hifuse_fast.data.decode import convert, load_image, read_image
from hifuse_fast.data.samples import ImageError
from tests.support.images import noise, png


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


# The pixels [H, W, ...] that an orientation shows, of those that are stored; written a second time, from the EXIF standard's
# "0th row, 0th column" of each value.
SHOWN = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
}
ORIENTED = {  # name: Pillow's mode, and options
    "colour.png": ("RGB", {}),
    "colour.webp": ("RGB", {"lossless": True}),
    "colour.jpg": ("RGB", {"quality": 95}),
    "colour.tif": ("RGB", {}),
    "grey.tif": ("L", {}),  # Pillow maps this one where it has a path, and the next two
    "palette.tif": ("P", {}),
    "inks.tif": ("CMYK", {}),
    "deep.tif": ("I;16", {}),
    "packed.tif": ("L", {"compression": "tiff_lzw"}),
}


def save_oriented(path, orientation: int) -> np.ndarray:
    """An image in the file, stored as it is, with an orientation beside; returns its stored pixels."""
    mode, options = ORIENTED[path.name]
    exif = Image.Exif()
    exif[0x0112] = orientation
    if mode == "I;16":
        values = np.random.default_rng(1).integers(0, 65536, (7, 11), dtype=np.uint16)
        Image.fromarray(values).save(path, exif=exif)
        return (values >> 8).astype(np.uint8)[..., None].repeat(3, 2)
    image = noise(7, 11).convert(mode)
    image.save(path, exif=exif, **options)
    if path.suffix == ".jpg":
        return np.asarray(Image.open(path))  # Pillow turns no JPEG
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", ORIENTED)
def test_orientations_are_applied_on_request_and_never_else(tmp_path, name):
    path = tmp_path / name
    for orientation, shown in SHOWN.items():
        stored = save_oriented(path, orientation)
        np.testing.assert_array_equal(np.asarray(load_image(path)), stored, err_msg=f"{orientation}")
        turned = np.asarray(load_image(path, exif_orientation=True))
        np.testing.assert_array_equal(turned, shown(stored), err_msg=f"{orientation}, applied")


@pytest.mark.parametrize("name", ["grey.tif", "inks.tif", "deep.tif", "colour.png"])
def test_orientation_of_an_image_that_pillow_opened_by_path(tmp_path, name):
    stored = save_oriented(tmp_path / name, 6)
    with Image.open(tmp_path / name) as image:
        np.testing.assert_array_equal(np.asarray(convert(image).image), stored)
        assert image.filename  # as it was


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
        "float.tif": (None, "32-bit floating-point samples have no known black and white"),
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
    reasons = {"absent.png": "cannot be opened: No such file or directory", ".": "not a regular file"}
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for a writer for ever
        reasons["pipe.png"] = "not a regular file"
        os.symlink("loop.png", tmp_path / "loop.png")
        reasons["loop.png"] = "cannot be opened: Too many levels of symbolic links"
    for name, reason in reasons.items():
        with pytest.raises(ImageError, match=reason):
            load_image(tmp_path / name)


def test_a_file_without_memory_for_it_is_an_image_error(tmp_path, monkeypatch):
    noise(4, 4).save(tmp_path / "x.png")
    monkeypatch.setattr(Image.Image, "convert", raises(MemoryError()))
    with pytest.raises(ImageError, match=r"x\.png: cannot be decoded: MemoryError"):
        load_image(tmp_path / "x.png")


def raises(error: Exception):
    def function(*_, **__):
        raise error

    return function


def test_pillows_own_limit_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    noise(5, 5).save(tmp_path / "x.png")
    with pytest.raises(ImageError, match=r"25 pixels.* exceeds limit of 20 .*PIL\.Image\.MAX_IMAGE_PIXELS sets that limit"):
        load_image(tmp_path / "x.png")


def test_a_bitmap_without_file_header(tmp_path):
    noise(5, 7).save(tmp_path / "x.dib")
    assert (tmp_path / "x.dib").read_bytes()[:2] != b"BM"
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "x.dib")), np.asarray(noise(5, 7)))


# ---- the samples of PIL images, which come by two entrances


def test_pil_images_of_sixteen_bits(tmp_path):
    for name, content in sixteen_bit_files().items():
        (tmp_path / name).write_bytes(content)
        with Image.open(tmp_path / name) as image:
            assert np.asarray(convert(image).image)[0].tolist() == [[value] * 3 for value in HIGH_BYTES], name
    for dtype in ("<u2", ">u2"):
        mode = "I;16" if dtype == "<u2" else "I;16B"
        image = Image.frombytes(mode, (6, 1), SIXTEEN_BITS.astype(dtype).tobytes())
        assert np.asarray(convert(image).image)[0, :, 0].tolist() == HIGH_BYTES


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pil_images_of_32_bits_are_refused(mode):
    with pytest.raises(ImageError, match="32-bit greyscale has no known range"):
        convert(Image.new(mode, (3, 3)))


def test_pil_images_that_need_their_file_are_refused(tmp_path):
    Image.fromarray(np.ones((3, 3), dtype=np.int32)).save(tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as image, pytest.raises(ImageError, match="load_image does, or says why it cannot"):
        convert(image)


def test_pil_images_without_pixels_are_refused():
    with pytest.raises(ImageError, match="has no pixels: 0 x 3"):
        convert(Image.new("RGB", (0, 3)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_pil_images_of_8_bits(mode):
    straight = {"La": "LA", "RGBa": "RGBA"}.get(mode, mode)
    image = noise(5, 4).convert({"La": "L", "LA": "L", "PA": "P"}.get(mode, "RGB")).convert(straight).convert(mode)
    expected = np.asarray(image.convert(straight).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(convert(image).image), expected)


# ---- bits


def deep_files(values: np.ndarray) -> dict[str, bytes]:
    """The values, uint16 [1, W], in every kind of file with 16-bit samples whose data may have fewer bits."""
    width = values.shape[1]
    big = values.astype(">u2").tobytes()
    big_rgb = values.T.repeat(3, 1).astype(">u2").tobytes()
    tiff = io.BytesIO()
    Image.fromarray(values).save(tiff, "TIFF")
    return {
        "grey.png": png(width, 1, 16, 0, b"\0" + big),
        "colour.png": png(width, 1, 16, 2, b"\0" + big_rgb),
        "grey.tif": tiff.getvalue(),
        "grey.pgm": b"P5\n%d 1\n65535\n" % width + big,
    }


TWELVE_BITS = np.array([[0, 15, 16, 255, 2048, 4095]], dtype=np.uint16)


@pytest.mark.parametrize("name", deep_files(TWELVE_BITS))
def test_twelve_bits_on_request(tmp_path, name):
    (tmp_path / name).write_bytes(deep_files(TWELVE_BITS)[name])
    assert np.asarray(load_image(tmp_path / name)).max() == 15  # nearly black
    decoded = read_image(tmp_path / name, bits=12)
    assert np.asarray(decoded.image)[0].tolist() == [[value] * 3 for value in (0, 0, 1, 15, 128, 255)]
    assert decoded.largest == read_image(tmp_path / name).largest == 4095
    (tmp_path / name).write_bytes(deep_files(TWELVE_BITS + np.uint16(1))[name])
    with pytest.raises(ImageError, match=f"{name}: its largest value is 4096, which is more than 12 bits hold: at most 4095"):
        load_image(tmp_path / name, bits=12)


def test_bits_are_not_for_files_that_say_them(tmp_path):
    (tmp_path / "x.pgm").write_bytes(b"P5\n2 1\n4095\n" + np.array([4095, 2048], dtype=">u2").tobytes())
    (tmp_path / "y.png").write_bytes(png(2, 1, 8, 0, b"\0\xff\x80"))
    for name in ("x.pgm", "y.png"):
        for bits in (8, 12, 16):
            decoded = read_image(tmp_path / name, bits=bits)
            assert np.asarray(decoded.image)[0].tolist() == [[255] * 3, [128] * 3], name
            assert decoded.largest is None


def test_bits_of_a_kind_that_pillow_reduces_are_refused(tmp_path):
    deep = np.full(8, 4095, dtype=">u2").tobytes()
    (tmp_path / "alpha.png").write_bytes(png(2, 1, 16, 4, b"\0" + deep[:8]))
    (tmp_path / "colour.ppm").write_bytes(b"P6\n1 1\n65535\n" + deep[:6])
    for name, largest in (("alpha.png", 4095), ("colour.ppm", None)):
        assert read_image(tmp_path / name).largest == largest
        with pytest.raises(ImageError, match=r"Pillow keeps 8 bits of .*cannot be taken for 12 bits"):
            load_image(tmp_path / name, bits=12)


@pytest.mark.parametrize("bits", [7, 17, 12.0, True])
def test_bits_out_of_range(tmp_path, bits):
    with pytest.raises(ValueError, match="bits must be an integer from 8 to 16, got"):
        load_image(tmp_path / "absent.png", bits=bits)


# ---- pages


def test_pages_are_counted(tmp_path):
    pages = [noise(4, 4, seed) for seed in range(3)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "y.png", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "one.tif")
    assert [read_image(tmp_path / name).pages for name in ("x.tif", "y.png", "one.tif")] == [3, 3, 1]


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_second_page_that_cannot_be_read_does_not_spoil_the_first(tmp_path):
    noise(4, 4).save(tmp_path / "x.tif", save_all=True, append_images=[Image.new("L", (4, 4))])
    content = bytearray((tmp_path / "x.tif").read_bytes())
    with Image.open(tmp_path / "x.tif") as image:
        image.seek(1)
        second = image._frame_pos[1]
    content[second : second + 40] = b"\xff" * 40
    (tmp_path / "x.tif").write_bytes(content)
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "x.tif")), np.asarray(noise(4, 4)))
