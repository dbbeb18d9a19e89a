"""DICOM files for tests, by pydicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage


def save_dicom(path: Path, pixels: Any, *, bits: int | None = None, syntax: str = ExplicitVRLittleEndian, **tags: Any) -> Path:
    """A file of one image: grey [H, W] or colours [H, W, 3], of `bits` of the bits that the dtype has.

    Args:
        path: of the file.
        pixels: as they are stored.
        bits: that are used; all unless given.
        syntax: the transfer syntax that the file names.
        tags: elements by their keywords, over the usual ones.
    """
    pixels = np.asarray(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = FileDataset(str(path), {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.UID("1.2.3.4")
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = pixels.shape[2] if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = 8 * pixels.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset["PixelData"] = pydicom.DataElement("PixelData", "OB" if pixels.itemsize == 1 else "OW", pixels.tobytes())
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def table(first: int, bits: int, values: Any) -> pydicom.Sequence:
    """A lookup table, as of VOI LUT Sequence."""
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(values), first, bits])
    item.add_new("LUTData", "US", [int(value) for value in values])
    return pydicom.Sequence([item])
