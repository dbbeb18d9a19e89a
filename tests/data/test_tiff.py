"""tiff.py: polarity, depth, sign and planes of TIFF files stand in their tags."""

import importlib.util
import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from hifuse_fast.data import tiff
from hifuse_fast.data.decode import load_image, read_image
from hifuse_fast.data.samples import ImageError

GREY = np.random.default_rng(0).integers(0, 65536, (7, 11), dtype=np.uint16)
COLOUR = np.random.default_rng(1).integers(0, 65536, (7, 11, 3), dtype=np.uint16)


def high_bytes(values: np.ndarray) -> np.ndarray:
    """[H, W, 3] of the high bytes of [H, W] or [H, W, 3]."""
    high = (values >> 8).astype(np.uint8)
    return high if high.ndim == 3 else high[..., None].repeat(3, 2)


def loaded(path, **options) -> np.ndarray:
    return np.asarray(load_image(path, **options))


def tag_changed(content: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF file whose first directory has another short value of a tag."""
    directory = int.from_bytes(content[4:8], "little")
    for index in range(int.from_bytes(content[directory : directory + 2], "little")):
        entry = directory + 2 + 12 * index
        if int.from_bytes(content[entry : entry + 2], "little") == tag:
            return content[: entry + 8] + value.to_bytes(4, "little") + content[entry + 12 :]
    raise AssertionError(f"no tag {tag}")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("kind", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_of_both_polarities(tmp_path, order, compression, kind, dtype):
    values = GREY if dtype == np.uint16 else (GREY >> 8).astype(np.uint8)
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, values, photometric=kind, byteorder=order, compression=compression)
    shown = GREY if kind == "minisblack" else 65535 - GREY
    np.testing.assert_array_equal(loaded(path), high_bytes(shown))
    assert read_image(path).largest == (GREY.max() if dtype == np.uint16 else None)


@pytest.mark.parametrize("order", ["<", ">"])
def test_white_is_zero_with_twelve_bits_in_sixteen(tmp_path, order):
    values = GREY >> 4
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="miniswhite", byteorder=order)
    expected = ((4095 - values) >> 4).astype(np.uint8)[..., None].repeat(3, 2)
    np.testing.assert_array_equal(loaded(tmp_path / "x.tif", bits=12), expected)
    tifffile.imwrite(tmp_path / "x.tif", GREY, photometric="miniswhite", byteorder=order)
    with pytest.raises(ImageError, match=f"its largest value is {GREY.max()}, which is more than 12 bits hold"):
        load_image(tmp_path / "x.tif", bits=12)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint32, np.float16, np.float32, np.float64])
def test_samples_without_a_known_black_and_white_are_named(tmp_path, dtype, order):
    tifffile.imwrite(tmp_path / "x.tif", (GREY >> 10).astype(dtype), photometric="minisblack", byteorder=order)
    kind = {"i": "signed", "u": "integer", "f": "floating-point"}[np.dtype(dtype).kind]
    bits = 8 * np.dtype(dtype).itemsize
    with pytest.raises(ImageError, match=rf"x\.tif: its {bits}-bit {kind} samples have no known black and white; convert"):
        load_image(tmp_path / "x.tif")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("alpha", [False, True])
def test_colour_in_planes_and_not(tmp_path, order, compression, planes, bits, alpha):
    values = COLOUR if bits == 16 else (COLOUR >> 8).astype(np.uint8)
    if alpha:
        values = np.concatenate([values, values[..., :1]], axis=2)
    stored = values if planes == "contig" else np.moveaxis(values, 2, 0)
    options = {"extrasamples": ["unassalpha"]} if alpha else {}
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, stored, photometric="rgb", planarconfig=planes, byteorder=order, compression=compression, **options)
    np.testing.assert_array_equal(loaded(path), high_bytes(COLOUR))


@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_colour_of_twelve_bits_in_sixteen(tmp_path, planes):
    values = COLOUR >> 4
    stored = values if planes == "contig" else np.moveaxis(values, 2, 0)
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="rgb", planarconfig=planes)
    np.testing.assert_array_equal(loaded(tmp_path / "x.tif", bits=12), high_bytes(COLOUR))
    assert read_image(tmp_path / "x.tif").largest < 4096


def test_a_file_of_twelve_bits_says_so(tmp_path):
    """Two samples in three bytes, which no library here writes: a file of 8 bits, three columns wide, with other tags."""
    tifffile.imwrite(tmp_path / "x.tif", np.array([[0xFF, 0xF8, 0x00]], dtype=np.uint8), photometric="minisblack")
    content = (tmp_path / "x.tif").read_bytes()
    for tag, value in ((258, 12), (256, 2)):
        content = tag_changed(content, tag, value)
    (tmp_path / "x.tif").write_bytes(content)
    for bits in (12, 16):
        assert loaded(tmp_path / "x.tif", bits=bits)[0, :, 0].tolist() == [255, 128]
    assert read_image(tmp_path / "x.tif").largest is None


def test_grey_with_more_samples_is_its_first(tmp_path):
    values = np.stack([GREY, GREY[::-1]], axis=2)
    tifffile.imwrite(tmp_path / "x.tif", values, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(loaded(tmp_path / "x.tif"), high_bytes(GREY))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_orientation_and_pages_of_what_pillow_does_not_read(tmp_path, orientation):
    tag = (274, "H", 1, orientation, True)
    with tifffile.TiffWriter(tmp_path / "x.tif", byteorder=">") as file:
        for values in (GREY, GREY[::-1], GREY):
            file.write(values, photometric="miniswhite", extratags=[tag], metadata=None)
    stored = high_bytes(65535 - GREY)
    np.testing.assert_array_equal(loaded(tmp_path / "x.tif"), stored)
    shown = np.rot90(stored, {1: 0, 3: 2, 6: 3, 8: 1}[orientation])
    np.testing.assert_array_equal(loaded(tmp_path / "x.tif", exif_orientation=True), shown)
    assert read_image(tmp_path / "x.tif").pages == 3


def test_the_limit_holds_for_what_pillow_does_not_read(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", GREY, photometric="miniswhite", byteorder=">")
    with pytest.raises(ImageError, match="11 x 7 pixels are more than the limit of 76"):
        load_image(tmp_path / "x.tif", max_pixels=76)


def test_a_truncated_file_that_pillow_does_not_read(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", GREY, photometric="miniswhite", byteorder=">")
    (tmp_path / "x.tif").write_bytes((tmp_path / "x.tif").read_bytes()[:-40])
    with pytest.raises(ImageError, match=r"x\.tif: cannot be decoded"):
        load_image(tmp_path / "x.tif")


def test_compressions_that_only_pillow_reads(tmp_path):
    file = io.BytesIO()
    Image.fromarray(GREY).save(file, "TIFF", compression="tiff_lzw")
    for photometric, shown in ((1, GREY), (0, 65535 - GREY)):
        (tmp_path / "x.tif").write_bytes(tag_changed(file.getvalue(), 262, photometric))
        np.testing.assert_array_equal(loaded(tmp_path / "x.tif"), high_bytes(shown))


@pytest.mark.skipif(importlib.util.find_spec("imagecodecs") is not None, reason="imagecodecs is there")
def test_a_compression_that_needs_another_package_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", np.moveaxis(COLOUR, 2, 0), photometric="rgb", planarconfig="separate")
    (tmp_path / "x.tif").write_bytes(tag_changed((tmp_path / "x.tif").read_bytes(), 259, 5))
    with pytest.raises(ImageError, match="TIFF of this kind, compressed by LZW, needs the package imagecodecs"):
        load_image(tmp_path / "x.tif")


def test_other_kinds_are_named(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", COLOUR, photometric="cielab")
    with pytest.raises(ImageError, match="TIFF of 3 samples of 16 bits, CIELAB, is not supported"):
        load_image(tmp_path / "x.tif")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_bytes_raise_image_errors_only(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "x.tif"
    damaged = 0
    for stored, options in (
        (GREY, {"photometric": "miniswhite", "byteorder": ">"}),
        (np.moveaxis(COLOUR, 2, 0), {"photometric": "rgb", "planarconfig": "separate", "compression": "deflate"}),
    ):
        tifffile.imwrite(path, stored, **options)
        good = path.read_bytes()
        for _ in range(60):
            bad = bytearray(good)
            for position in rng.integers(0, 260, 3):
                bad[position] = rng.integers(256)
            path.write_bytes(bad)
            try:
                assert load_image(path, max_pixels=10**6).mode == "RGB"
            except ImageError:
                damaged += 1
    assert damaged > 30  # the damage is real


def test_many_samples_are_refused_before_memory_is_asked_for(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", GREY, photometric="minisblack")
    (tmp_path / "x.tif").write_bytes(tag_changed((tmp_path / "x.tif").read_bytes(), 277, 60000))
    with pytest.raises(ImageError, match="TIFF of 60000 samples of 16 bits, MINISBLACK, is not supported"):
        load_image(tmp_path / "x.tif")


def test_what_begins_as_a_tiff():
    assert [tiff.is_tiff(io.BytesIO(content)) for content in (b"II*\0", b"MM\0*..", b"II", b"")] == [True, True, False, False]
