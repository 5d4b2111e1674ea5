"""Read DICOM files as 8-bit RGB images, and the header fields that splitting and reporting need.

pydicom (`pfedst[dicom]`) is imported when the first file is read.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pfedst.data.dicom.levels import Report, grey_levels, palette_colours, top_byte
from pfedst.data.jpeg import check_scans
from pfedst.data.limits import COPY_AGAIN, MOST_PIXELS, NamelessError, check_shape, check_single
from pfedst.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom import Dataset

SUFFIXES = (".dcm", ".dicom")
MOST_BYTES = 600_000_000  # of an inflated file: MOST_PIXELS pixels of three 16-bit colours
HEADER = [
    *("PatientID", "BurnedInAnnotation", "Modality", "Rows", "Columns", "NumberOfFrames"),
    "PhotometricInterpretation",
]


@dataclass(frozen=True)
class DicomHeader:
    """Header fields for splits and reports, without the name of a person.

    Attributes:
        patient: a hash of the patient identifier in 16 hexadecimal digits, equal for equal identifiers; None if the
            file has none. The hash keeps the identifier out of reports and logs, but does not anonymise: a guessed
            identifier can be checked against it.
        burned_in: True if the file states that text is burned into its pixels; None if it makes no statement.
        modality: such as "CT"; "" if the file does not state it.
        size: width and height in pixels; (0, 0) if the file holds no image.
        frames: number of images in the file.
        grey: True for grey values, which a window turns into levels; False for colours.
    """

    patient: str | None
    burned_in: bool | None
    modality: str
    size: tuple[int, int]
    frames: int
    grey: bool = True


def is_dicom(path: Path) -> bool:
    """Return True if a file is a DICOM image, by its suffix, or by its content if the suffix is inconclusive.

    A damaged `.dcm` counts as DICOM, so that it is reported as damaged and not skipped. A DICOMDIR does not count: it
    is the table of contents of an exported disc. pydicom is not needed.
    """
    if path.suffix.lower() in SUFFIXES:
        return True
    # PACS exports are named by number or by UID, whose last part looks like a suffix
    if (path.suffix and not path.suffix[1:].isdecimal()) or path.name.upper() == "DICOMDIR":
        return False
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            return False
        with path.open("rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_header(path: Path) -> DicomHeader:
    """Read the header without the pixels.

    Raises:
        DataError: If pydicom is missing, or the file is missing, damaged or not a DICOM file.
    """
    with _named_errors(path):
        dataset = _read(path, stop_before_pixels=True, specific_tags=HEADER)
        burned_in = str(dataset.get("BurnedInAnnotation") or "").strip().upper()
        return DicomHeader(
            _patient(dataset),
            {"YES": True, "NO": False}.get(burned_in),
            str(dataset.get("Modality") or "").strip(),
            (int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0)),
            int(dataset.get("NumberOfFrames") or 1),
            str(dataset.get("PhotometricInterpretation") or "").startswith("MONOCHROME"),
        )


def load_dicom(path: Path, window: tuple[float, float] | None = None, report: Report | None = None) -> Image.Image:
    """Read the image as a screen would show it: RGB, 8 bits per channel.

    Greyscale passes through the modality lookup table or rescale. Then the first available of these is applied:
    `window`; the file's lookup table; the file's first window; scaling from the smallest to the largest value without
    padding. MONOCHROME1 is inverted. Unsigned 8-bit greyscale without rescale and window is unchanged: such files
    (secondary captures, ultrasound, photographs) hold display levels, and scaling would change the brightness from
    image to image.

    Args:
        path: a file with one frame.
        window: centre and width in rescaled units (Hounsfield units in CT): black at centre - width / 2 and below,
            white at centre + width / 2 and above, whatever the file's VOI LUT function. Ignored for colour.
        report: called with the smallest and the largest value if they become black and white, which is a guess.

    Raises:
        DataError: If pydicom or a decoder is missing; the file is missing or damaged; it holds no pixels, several
            frames, more pixels than PIL accepts, an extreme shape, or colours of an unknown kind; or a window is too
            narrow.
    """
    with _named_errors(path):
        dataset = _read(path)
        _check(dataset)
        _unfold(dataset)
        stored, kind = _decode(dataset)
        if kind in ("MONOCHROME1", "MONOCHROME2"):
            levels = grey_levels(dataset, stored, window, report)
            if kind == "MONOCHROME1":
                np.subtract(1, levels, out=levels)
            levels *= 255  # in place, here and above: float64 of the largest image is 700 MB
            return Image.fromarray(np.rint(levels, out=levels).astype(np.uint8)).convert("RGB")
        if kind == "PALETTE COLOR":
            return Image.fromarray(palette_colours(dataset, stored))
        if kind == "RGB" and stored.ndim == 3:
            return Image.fromarray(top_byte(stored, min(dataset.BitsStored, 8 * stored.itemsize)))
        raise NamelessError(f"colours of the kind {kind} are not supported; export the image as RGB")


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; correct the path, or copy it again") from error
    except NamelessError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # pydicom raises many kinds for damaged files
        raise DataError(f"{path}: {_line(error)}; {COPY_AGAIN}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _read(path: Path, **options: Any) -> Dataset:
    try:
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
        from pydicom.pixels.decoders import base  # noqa: F401  # pydicom 2 has none
    except ImportError as error:
        raise NamelessError("reading DICOM needs pip install 'pfedst[dicom]'") from error
    try:
        _check_inflated(path)
        return dcmread(path, **options)
    except InvalidDicomError as error:
        raise NamelessError(f"not a DICOM file (no DICM at byte 128); {COPY_AGAIN}") from error


def _check_inflated(path: Path) -> None:
    """Refuse a deflated file that would fill the memory: pydicom always inflates the whole file."""
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    with path.open("rb") as file:
        read_preamble(file, False)
        meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag.group != 2)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        inflated, pump = 0, zlib.decompressobj(-zlib.MAX_WBITS)
        while chunk := pump.unconsumed_tail or file.read(1 << 16):
            inflated += len(pump.decompress(chunk, 1 << 20))
            if inflated > MOST_BYTES:
                raise NamelessError(f"more than {MOST_BYTES:,} bytes once inflated, which may be an attack; remove it")
            if pump.eof:
                return


def _patient(dataset: Dataset) -> str | None:
    if "PatientID" not in dataset:
        return None
    raw = dataset.get_item("PatientID")
    if hasattr(raw, "_replace"):
        # text, whatever the file calls it: a failed conversion to a number or date would print the identifier
        dataset["PatientID"] = raw._replace(VR="LO")
    identifier = str(dataset.PatientID or "").strip()
    return hashlib.blake2b(identifier.encode(), digest_size=8).hexdigest() if identifier else None


def _check(dataset: Dataset) -> None:
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise NamelessError("its pixels are floating-point numbers, which are not read; export them as integers")
    if "PixelData" not in dataset:
        raise NamelessError(f"no pixel data (cut short, or no image); {COPY_AGAIN}")
    check_single(int(dataset.get("NumberOfFrames") or 1), "frame")
    width, height = int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0)
    if not 0 < width * height <= MOST_PIXELS:
        raise NamelessError(f"{width} x {height} pixels are not between 1 and {MOST_PIXELS}; {COPY_AGAIN}")
    check_shape(width, height)


def _unfold(dataset: Dataset) -> None:
    # enhanced objects, those of one frame included, keep rescale and window in nested groups
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in (dataset.get(groups) or [])[:1]:
            for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for item in (group.get(name) or [])[:1]:
                    dataset.update(item)


def _check_frames(dataset: Dataset) -> None:
    """Refuse frames that would take minutes to decode.

    The frames are cut as a decoder cuts them, so a header cannot hide a part of one.
    """
    from pydicom.encaps import generate_frames

    offsets, lengths = (dataset.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"))
    # decoders also ignore tables of different lengths
    tables = (offsets, lengths) if offsets and lengths and len(offsets) == len(lengths) else None
    for frame in generate_frames(dataset.PixelData, number_of_frames=1, extended_offsets=tables):
        check_scans(frame)


def _decode(dataset: Dataset) -> tuple[NDArray[Any], str]:
    """Return stored values, (height, width) or (height, width, 3), and their photometric interpretation.

    YBR is converted to RGB.
    """
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.decoders.pylibjpeg import DECODER_DEPENDENCIES

    syntax = dataset.file_meta.TransferSyntaxUID
    packages = " ".join(f"'{package}'" for package in DECODER_DEPENDENCIES.get(syntax, ()))
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise NamelessError(f"{syntax.name} cannot be decoded; export the image uncompressed") from error
    if not decoder.is_available:
        raise NamelessError(f"no decoder for {syntax.name} is installed; pip install {packages}")
    if syntax.is_encapsulated:
        _check_frames(dataset)
    try:
        stored, found = decoder.as_array(dataset)
    except Exception as error:
        if not packages or "pylibjpeg" in decoder.available_plugins:
            raise
        # Pillow decodes JPEG Extended of 8 bits only, and no deep colour in JPEG 2000
        raise NamelessError(f"{_line(error)}; {COPY_AGAIN}, or if it is whole pip install {packages}") from error
    if stored.shape[:2] != (dataset.Rows, dataset.Columns):
        raise NamelessError(f"more pixel data than {dataset.Columns} x {dataset.Rows}; {COPY_AGAIN}")
    return stored, str(found["photometric_interpretation"])
