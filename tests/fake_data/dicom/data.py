"""Fake DICOM files, written element by element."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT = "1.2.840.10008.5.1.4.1.1.2"


def make(path: Path, pixels: Any, syntax: str = ExplicitVRLittleEndian, frame: bytes = b"", **elements: Any) -> Path:
    """Write an image: greyscale (height, width), or colour (height, width, 3); the path.

    Args:
        path: where to.
        pixels: an array whose type says the bits and the sign.
        syntax: transfer syntax; `frame` then holds the compressed pixels.
        frame: pixel data of another form than the array's.
        elements: more elements, or others; None removes one.
    """
    pixels = np.asarray(pixels)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CT
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    dataset.Modality = "CT"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = pixels.shape[2] if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    content = frame or pixels.tobytes()
    compressed = dataset.file_meta.TransferSyntaxUID.is_compressed
    dataset.add_new(
        "PixelData", "OB" if compressed or pixels.itemsize == 1 else "OW", content + b"\0" * (len(content) % 2)
    )
    if compressed:
        dataset.PixelData = encapsulate([content])
        dataset["PixelData"].is_undefined_length = True
    for name, value in elements.items():
        if value is None:
            del dataset[name]
        elif isinstance(value, tuple):  # a value representation that is not to be guessed
            dataset.add_new(name, *value)
        else:
            setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def table(entries: list[int], first: int, bits: int) -> Dataset:
    """One item of a Modality or VOI LUT sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries)
    return item
