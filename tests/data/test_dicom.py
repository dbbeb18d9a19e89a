"""dicom.py: what a viewer shows of a DICOM file, worked out by hand from the standard, and what is refused by name."""

import contextlib
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hifuse_fast.data.decode import load_image
from hifuse_fast.data.images import ImageError
from hifuse_fast.data.listing import find_images

pydicom = pytest.importorskip("pydicom")

from tests.support.dicom import save_dicom, table  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
VALUES = np.random.default_rng(0).integers(0, 4096, (9, 7), dtype=np.uint16)


def grey(path, **options):
    """The one channel of a file, of which all three must be equal."""
    image = np.asarray(load_image(path, **options))
    assert (image == image[..., :1]).all()
    return image[..., 0]


def windowed(values, center, width):
    """PS3.3, C.11.2.1.2.1, from 0 to 255."""
    shown = ((values - (center - 0.5)) / (width - 1) + 0.5) * 255
    return np.rint(np.clip(shown, 0, 255)).astype(np.uint8)


def test_bits_that_say_what_white_is_need_no_window(tmp_path):
    small = (VALUES >> 4).astype(np.uint8)
    assert (grey(save_dicom(tmp_path / "x.dcm", small)) == small).all()
    assert (grey(save_dicom(tmp_path / "x.dcm", VALUES, bits=12)) == VALUES >> 4).all()
    assert (grey(save_dicom(tmp_path / "x.dcm", VALUES, bits=12), bits=14) == VALUES >> 4).all()  # the file is believed
    assert (grey(save_dicom(tmp_path / "x.dcm", VALUES)) == VALUES >> 8).all()
    inverted = save_dicom(tmp_path / "x.dcm", VALUES, bits=12, PhotometricInterpretation="MONOCHROME1")
    assert (grey(inverted) == 255 - (VALUES >> 4)).all()


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("signed", [False, True])
def test_rescale_and_window(tmp_path, kind, signed):
    stored = VALUES.astype(np.int16) - 2048 if signed else VALUES
    tags = {"RescaleSlope": 2, "RescaleIntercept": -1024, "WindowCenter": [40, 300], "WindowWidth": [400, 1500]}
    path = save_dicom(tmp_path / "x.dcm", stored, bits=12, PhotometricInterpretation=kind, **tags)
    units = 2.0 * stored - 1024
    for options, window in (({}, (40, 400)), ({"window": (-600.0, 1500.0)}, (-600, 1500))):
        expected = windowed(units, *window)
        assert (grey(path, **options) == (255 - expected if kind == "MONOCHROME1" else expected)).all()


def test_functions_of_a_window(tmp_path):
    tags = {"WindowCenter": 2000, "WindowWidth": 1000}
    exact = save_dicom(tmp_path / "x.dcm", VALUES, bits=12, VOILUTFunction="LINEAR_EXACT", **tags)
    shown = np.rint(np.clip((VALUES - 2000.0) / 1000 + 0.5, 0, 1) * 255)
    assert (grey(exact) == shown).all()
    sigmoid = save_dicom(tmp_path / "y.dcm", VALUES, bits=12, VOILUTFunction="SIGMOID", **tags)
    assert (grey(sigmoid) == np.rint(255 / (1 + np.exp(-4 * (VALUES - 2000.0) / 1000)))).all()
    assert (grey(sigmoid, window=(2000, 1000)) == windowed(VALUES, 2000, 1000)).all()  # a window of one's own is linear


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_lookup_table_comes_before_a_window(tmp_path, bits):
    """Also one with more entries than its numbers have values, which pydicom alone looks up modulo 256."""
    entries = (np.linspace(0, 1, 3000) ** 2 * (2**bits - 1)).astype(int)
    tags = {"WindowCenter": 40, "WindowWidth": 400, "VOILUTSequence": table(500, bits, entries)}
    path = save_dicom(tmp_path / "x.dcm", VALUES, bits=12, **tags)
    found = entries[np.clip(VALUES.astype(int) - 500, 0, 2999)]
    assert (grey(path) == np.rint(found * (255 / (2**bits - 1)))).all()
    assert (grey(path, window=(2000, 1000)) == windowed(VALUES, 2000, 1000)).all()
    rescaled = save_dicom(tmp_path / "y.dcm", VALUES, bits=12, **tags, RescaleSlope=100, RescaleIntercept=-9000)
    found = entries[np.clip(100 * VALUES.astype(int) - 9000 - 500, 0, 2999)]
    assert (grey(rescaled) == np.rint(found * (255 / (2**bits - 1)))).all()


def test_a_modality_lookup_table(tmp_path):
    entries = np.arange(4096)[::-1] * 10
    tags = {"ModalityLUTSequence": table(0, 16, entries), "WindowCenter": 20000, "WindowWidth": 30000}
    path = save_dicom(tmp_path / "x.dcm", VALUES, bits=12, **tags)
    assert (grey(path) == windowed(entries[VALUES], 20000, 30000)).all()


def test_an_enhanced_image_says_it_in_groups(tmp_path):
    def within(name, **values):
        inner, outer = pydicom.Dataset(), pydicom.Dataset()
        for key, value in values.items():
            setattr(inner, key, value)
        setattr(outer, name, pydicom.Sequence([inner]))
        return pydicom.Sequence([outer])

    path = save_dicom(
        tmp_path / "x.dcm", VALUES, bits=12, NumberOfFrames=1,
        SharedFunctionalGroupsSequence=within("PixelValueTransformationSequence", RescaleSlope=2, RescaleIntercept=-1024),
        PerFrameFunctionalGroupsSequence=within("FrameVOILUTSequence", WindowCenter=40, WindowWidth=400),
    )  # fmt: skip
    assert (grey(path) == windowed(2.0 * VALUES - 1024, 40, 400)).all()


def test_elements_that_are_empty_say_nothing(tmp_path):
    empty = dict.fromkeys(("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "VOILUTFunction"))
    path = save_dicom(tmp_path / "x.dcm", VALUES, bits=12, **empty, VOILUTSequence=pydicom.Sequence())
    assert (grey(path) == VALUES >> 4).all()
    assert (grey(path, window=(2000, 1000)) == windowed(VALUES, 2000, 1000)).all()


def test_colours(tmp_path):
    rgb = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    assert (np.asarray(load_image(save_dicom(tmp_path / "x.dcm", rgb))) == rgb).all()
    planes = save_dicom(tmp_path / "x.dcm", rgb, PlanarConfiguration=1, PixelData=np.moveaxis(rgb, -1, 0).tobytes())
    assert (np.asarray(load_image(planes)) == rgb).all()
    deep = save_dicom(tmp_path / "x.dcm", rgb.astype(np.uint16) << 4, bits=12)
    assert (np.asarray(load_image(deep)) == rgb).all()
    ycc = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    ybr = save_dicom(tmp_path / "x.dcm", ycc, PhotometricInterpretation="YBR_FULL")
    assert np.abs(np.asarray(load_image(ybr)).astype(int) - rgb).max() <= 3  # twice rounded
    colours = {"Red": [0, 65535, 256], "Green": [0, 0, 512], "Blue": [0, 32768, 768]}
    tags = {f"{name}PaletteColorLookupTableDescriptor": [3, 0, 16] for name in colours}
    tags |= {f"{name}PaletteColorLookupTableData": np.array(c, np.uint16).tobytes() for name, c in colours.items()}
    index = np.array([[0, 1], [2, 1]], np.uint8)
    palette = save_dicom(tmp_path / "x.dcm", index, PhotometricInterpretation="PALETTE COLOR", **tags)
    assert np.asarray(load_image(palette)).tolist() == [[[0, 0, 0], [255, 0, 128]], [[1, 2, 3], [255, 0, 128]]]


def test_pydicoms_own_files(tmp_path):
    """Files of other writers: compressed, big-endian, padded, of implicit types."""
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    if not (folder / "MR_small.dcm").exists():
        pytest.skip("pydicom is installed without its files")
    plain = grey(folder / "MR_small.dcm")
    for name in ("RLE", "bigendian", "expb", "implicit", "jp2klossless", "padded"):
        assert (grey(folder / f"MR_small_{name}.dcm") == plain).all(), name
    assert np.asarray(load_image(folder / "SC_rgb_jpeg_dcmtk.dcm")).reshape(-1, 3)[4 * 100].tolist() == [254, 0, 0]
    content = (folder / "CT_small.dcm").read_bytes()
    assert content[128:132] == b"DICM"
    bare = tmp_path / "bare.dcm"  # without preamble and meta information, as old tools write it
    pydicom.dcmread(folder / "MR_small_implicit.dcm").save_as(tmp_path / "whole.dcm")
    dataset = pydicom.dcmread(tmp_path / "whole.dcm")
    with bare.open("wb") as file:
        pydicom.filewriter.write_dataset(_implicit(file), dataset)
    assert (grey(bare) == plain).all()


def _implicit(file):
    wrapped = pydicom.filebase.DicomIO(file)
    wrapped.is_little_endian = wrapped.is_implicit_VR = True
    return wrapped


WRAPPED = pydicom.encaps.encapsulate([b"no image"])
SIGNED = VALUES.astype(np.int16)
REFUSED = {
    "multi-frame DICOM, of 3 frames, is not read; write": (VALUES, {"NumberOfFrames": 3}),
    "its signed samples have no known black and white, for the file has no window; give one by --window": (SIGNED, {}),
    "its rescaled samples have no known": (VALUES, {"RescaleSlope": 1, "RescaleIntercept": -1024}),
    "its 6-bit samples": (VALUES, {"BitsStored": 6}),
    "transfer syntax MPEG2 Main Profile / Main Level": (VALUES, {"syntax": "1.2.840.10008.1.2.4.100", "PixelData": WRAPPED}),
    r"transfer syntax JPEG-LS Lossless Image Compression": (VALUES, {"syntax": "1.2.840.10008.1.2.4.80", "PixelData": WRAPPED}),
    r"cannot decode its pixels in the transfer syntax JPEG 2000 Image Compression": (
        VALUES, {"syntax": "1.2.840.10008.1.2.4.90", "PixelData": WRAPPED},
    ),
    "transfer syntax Deflated Explicit VR Little Endian is not read": (VALUES, {"syntax": "1.2.840.10008.1.2.1.99"}),
    "of 3 samples a pixel, MONOCHROME2": (np.zeros((2, 2, 3), np.uint8), {"PhotometricInterpretation": "MONOCHROME2"}),
    "of colours as CMYK": (np.zeros((2, 2, 3), np.uint8), {"PhotometricInterpretation": "CMYK"}),
    "pixel data is less than expected": (VALUES, {"Rows": 10}),
    "60000 x 9 pixels are more than": (VALUES, {"Columns": 60000}),
    "Window Width must be greater": (VALUES, {"WindowCenter": 1, "WindowWidth": 0}),
    "does not make finite numbers": (
        VALUES, {"WindowCenter": 1, "WindowWidth": 5, "RescaleSlope": "1e308", "RescaleIntercept": 0},
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_read_is_named(tmp_path, reason):
    values, tags = REFUSED[reason]
    path = save_dicom(tmp_path / "x.dcm", values, **tags)
    with pytest.raises(ImageError) as raised:
        load_image(path, max_pixels=10**5)
    assert reason in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ")


def test_a_file_without_an_image_is_named_by_its_kind(tmp_path):
    path = save_dicom(tmp_path / "x.dcm", VALUES, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    dataset = pydicom.dcmread(path)
    del dataset.Rows
    dataset.save_as(path)
    with pytest.raises(ImageError, match="DICOM without an image: Basic Text SR Storage"):
        load_image(path)
    for text in (b"", b"no DICOM at all", b"\xff" * 999):
        path.write_bytes(text)
        with pytest.raises(ImageError, match=r"x\.dcm: "):
            load_image(path)


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_raise_image_errors_only(tmp_path):
    whole = save_dicom(tmp_path / "x.dcm", VALUES, bits=12, WindowCenter=2000, WindowWidth=1000).read_bytes()
    draw = np.random.default_rng(0)
    for _ in range(150):
        content = bytearray(whole[: draw.integers(132, len(whole))] if draw.random() < 0.3 else whole)
        for place in draw.integers(128, len(content), draw.integers(1, 6)):
            content[place] = draw.integers(256)
        (tmp_path / "y.dcm").write_bytes(content)
        with contextlib.suppress(ImageError):
            load_image(tmp_path / "y.dcm", max_pixels=10**6)


def test_compressed_pixels_that_are_larger_than_the_header_says(tmp_path):
    for syntax, kind in (("1.2.840.10008.1.2.4.50", "JPEG"), ("1.2.840.10008.1.2.4.90", "JPEG2000")):
        for size in ((16, 8), (160, 80)):
            content = io.BytesIO()
            Image.new("L", size, 90).save(content, kind)
            frame = pydicom.encaps.encapsulate([content.getvalue()])
            path = save_dicom(tmp_path / "x.dcm", np.zeros((8, 16), np.uint8), syntax=syntax, PixelData=frame)
            if size == (16, 8):
                assert (grey(path) == 90).all()
                continue
            with pytest.raises(ImageError, match="its compressed pixels are 160 x 80, and its header says 16 x 8"):
                load_image(path)


def test_without_pydicom_it_is_said_what_to_install(tmp_path, monkeypatch):
    path = save_dicom(tmp_path / "x.dcm", VALUES)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageError, match=r"x\.dcm: DICOM needs the package pydicom .*pip install 'hifuse_fast\[dicom\]'"):
        load_image(path)


@pytest.mark.parametrize("window", [(1, 0), (1, 0.5), (float("nan"), 9), (1, float("inf")), (1,)])
def test_a_window_that_is_none(tmp_path, window):
    with pytest.raises(ValueError, match="window must be a finite centre and a width of at least 1"):
        load_image(tmp_path / "x.dcm", window=window)


def test_files_of_a_folder_are_found_by_suffix_or_content(tmp_path):
    for name in ("a.dcm", "b.DICOM", "IM0001", "1.2.840.113", "DICOMDIR", "c.txt"):
        save_dicom(tmp_path / name, VALUES)
    (tmp_path / "README").write_text("no image")
    (tmp_path / "PIPE.1").mkdir()
    found = find_images([tmp_path])
    assert [path.name for path in found.images] == ["1.2.840.113", "IM0001", "a.dcm", "b.DICOM"]
    assert found.summary_of_others() == "3 files were not read: 2 without a suffix, 1 .txt"
