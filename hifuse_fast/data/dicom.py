"""DICOM: one image as a viewer shows it first, by pydicom, which is optional."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from hifuse_fast.data.samples import FULL_BITS, ImageError, Samples, Window, check_size

SUFFIXES = (".dcm", ".dicom")
_MAGIC, _WHERE = b"DICM", 128
_INDEX = "DICOMDIR"  # the name of the index of a medium, which has the magic and no image
_FAR = 1e30  # a value beyond any window
_GREY = ("MONOCHROME1", "MONOCHROME2")
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")  # of enhanced images
_OF_VALUES = ("PixelValueTransformationSequence", "FrameVOILUTSequence")  # what these say of the values
_MAY_BE_EMPTY = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction")


def is_dicom(file: BinaryIO) -> bool:
    """Whether a file says that it is DICOM."""
    file.seek(_WHERE)
    return file.read(len(_MAGIC)) == _MAGIC


def may_be_dicom(path: str, suffix: str) -> bool:
    """Whether a file without a suffix that tells is a DICOM image: exports name files "IM0001", or by a UID "1.2.840.113"."""
    if (suffix and not suffix[1:].isdigit()) or os.path.basename(path) == _INDEX or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            return is_dicom(file)
    except OSError:
        return False


def read_samples(file: BinaryIO, max_pixels: int, window: Window | None) -> Samples:
    """The one image of a DICOM file: rescaled, windowed, MONOCHROME1 inverted; colours as RGB.

    Of several windows in a file the first is taken, a lookup table (VOI LUT) before a window. Unsigned samples that are not
    rescaled need neither: they are shown in the range of their bits.

    Args:
        file: opened for reading.
        max_pixels: the most pixels that are decoded.
        window: centre and width, in place of what the file says, in the unit of rescaled values; not for colours.

    Raises:
        ImageError: pydicom is not installed or cannot decode the file's transfer syntax; a file of several frames or without
            an image; samples without a known black and white.

    Source: DICOM PS3.3, C.11.1 and C.11.2.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ImageError(f"DICOM needs the package pydicom ({error}): pip install 'hifuse_fast[dicom]'") from None

    told = is_dicom(file)
    if told:
        file.seek(0)
        _check_syntax(pydicom.filereader.read_file_meta_info(file.name).get("TransferSyntaxUID"))
    file.seek(0)
    _check_header(pydicom.dcmread(file, stop_before_pixels=True, force=not told), max_pixels)
    file.seek(0)
    dataset = pydicom.dcmread(file, force=not told)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        kinds = pydicom.uid.ImplicitVRLittleEndian, pydicom.uid.ExplicitVRLittleEndian, pydicom.uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = kinds[0 if implicit else 1 if little else 2]
    _check_frame(dataset)
    _lift(dataset)
    values = _decode(dataset)
    return _grey(dataset, values, window) if dataset.PhotometricInterpretation in _GREY else _colour(dataset, values)


def _check_syntax(syntax: Any) -> None:
    """ImageError where pydicom cannot decode it, or would without knowing how much will come."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    name = getattr(syntax, "name", syntax)
    if syntax is None:
        raise ImageError("DICOM without a transfer syntax cannot be decoded")
    if syntax == DeflatedExplicitVRLittleEndian:
        raise ImageError(f"DICOM in the transfer syntax {name} is not read; convert the file to another one")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise ImageError(f"pydicom cannot decode the transfer syntax {name}") from None
    if not decoder.is_available:
        needed = "; ".join(decoder.missing_dependencies)
        raise ImageError(f"pydicom cannot decode the transfer syntax {name} without further packages: {needed}")


def _check_header(dataset: Any, max_pixels: int) -> None:
    """ImageError where there is not one image of a known kind."""
    if "Rows" not in dataset or "Columns" not in dataset or "PhotometricInterpretation" not in dataset:
        kind = getattr(dataset.get("SOPClassUID"), "name", None)
        raise ImageError(f"DICOM without an image{f': {kind}' if kind else ''}")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageError(f"multi-frame DICOM, of {frames} frames, is not read; write each frame into a file of its own")
    check_size(dataset.Columns, dataset.Rows, max_pixels)
    samples, kind = dataset.get("SamplesPerPixel", 1), dataset.PhotometricInterpretation
    if samples != (1 if kind in (*_GREY, "PALETTE COLOR") else 3):
        raise ImageError(f"DICOM of {samples} samples a pixel, {kind}, is not supported")


def _check_frame(dataset: Any) -> None:
    """ImageError where compressed pixels are of another size than the header says, as in a file that is to fill the memory."""
    from pydicom.encaps import generate_frames

    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    try:
        with Image.open(io.BytesIO(frame), formats=["JPEG", "JPEG2000"]) as image:
            size = image.size
    except UnidentifiedImageError:  # of another kind, or damaged, which its decoder says
        return
    if size != (dataset.Columns, dataset.Rows):
        raise ImageError(
            f"its compressed pixels are {size[0]} x {size[1]}, and its header says {dataset.Columns} x {dataset.Rows}"
        )


def _lift(dataset: Any) -> None:
    """Put what an enhanced image says of its one frame where other images have it, and take empty elements away."""
    for outer in _GROUPS:
        for inner in _OF_VALUES:
            group = dataset.get(outer) and dataset[outer][0].get(inner)
            for element in group[0] if group else ():
                dataset.add(element)
    for name in _MAY_BE_EMPTY:
        if name in dataset and dataset[name].is_empty:
            del dataset[name]


def _decode(dataset: Any) -> NDArray[Any]:
    from pydicom.pixels.utils import pixel_array

    try:
        return pixel_array(dataset)
    except RuntimeError as error:  # of the decoders of compressed pixels
        syntax = dataset.file_meta.TransferSyntaxUID
        reason = " ".join(str(error).partition(":\n")[2].split()) or str(error)
        raise ImageError(f"pydicom cannot decode its pixels in the transfer syntax {syntax.name}: {reason}") from None


def _colour(dataset: Any, values: NDArray[Any]) -> Samples:
    """RGB; what was YBR is RGB already."""
    from pydicom.pixels.processing import apply_color_lut

    kind, bits = dataset.PhotometricInterpretation, int(dataset.BitsStored)
    if kind == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
        bits = 8 * values.dtype.itemsize
    elif kind not in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"):
        raise ImageError(f"DICOM of colours as {kind} is not supported")
    if values.dtype.kind != "u" or not 8 <= bits <= FULL_BITS:
        raise ImageError(f"DICOM of colours of {bits} bits, {values.dtype}, is not supported")
    return Samples(values[..., :3], bits, told=True)


def _grey(dataset: Any, values: NDArray[Any], window: Window | None) -> Samples:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing

    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    if window is not None:
        dataset.WindowCenter, dataset.WindowWidth = (float(value) for value in window)
        dataset.VOILUTFunction = "LINEAR"
    elif _has_table(dataset):
        table = dataset.VOILUTSequence[0]
        count, first, bits = table.LUTDescriptor
        count = count or 2**16
        table.LUTDescriptor = [count % 2**16, first, FULL_BITS]  # pydicom looks up in numbers of the table's own bits
        indices = np.clip(np.rint(apply_modality_lut(values, dataset)), first, first + count - 1).astype(np.int64)
        return _scaled(apply_voi(indices, dataset), 0, 2**bits - 1, inverted)
    elif "WindowCenter" not in dataset or "WindowWidth" not in dataset:
        return _full_range(dataset, values, inverted)
    rescaled = apply_modality_lut(values, dataset)
    with np.errstate(over="ignore"):  # of a sigmoid's tail, where infinity is right
        black, white = apply_windowing(np.array([-_FAR, _FAR]), dataset)
        shown = apply_windowing(rescaled, dataset)
    return _scaled(shown, black, white, inverted)


def _has_table(dataset: Any) -> bool:
    return bool(dataset.get("VOILUTSequence")) and "LUTData" in dataset.VOILUTSequence[0]


def _full_range(dataset: Any, values: NDArray[Any], inverted: bool) -> Samples:
    """Samples whose file has no window, where their bits alone say what white is."""
    bits = int(dataset.get("BitsStored") or 0)
    rescaled = float(dataset.get("RescaleSlope") or 1) != 1 or float(dataset.get("RescaleIntercept") or 0) != 0
    reason = "rescaled" if rescaled or dataset.get("ModalityLUTSequence") else None
    if values.dtype.kind != "u":
        reason = "signed" if values.dtype.kind == "i" else "floating-point"
    if reason is None and 8 <= bits <= FULL_BITS:
        return Samples(values, bits, inverted, told=True)
    reason = reason or f"{bits}-bit"
    raise ImageError(f"its {reason} samples have no known black and white, for the file has no window; give one by --window")


def _scaled(values: NDArray[Any], black: float, white: float, inverted: bool) -> Samples:
    """Values from black to white, as 8 bits."""
    if not np.isfinite(values).all() or not white > black:
        raise ImageError("its rescale or its window does not make finite numbers of its samples")
    scaled = np.clip((values.astype(np.float64) - black) * (255 / (white - black)), 0, 255)
    return Samples(np.rint(scaled).astype(np.uint8), 8, inverted, told=True)
