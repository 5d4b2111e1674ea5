"""DICOM files as 8-bit RGB images, and the little of their headers that splitting and reporting need.

pydicom (`pfedst[dicom]`) is imported when the first file is read. It reads and decodes; lookup tables and windows are
applied here, because pydicom 3.0 lets an index beyond an 8-bit table wrap around instead of taking the last entry, and
its windows turn dark into bright where the rescale slope is negative.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pfedst.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom import Dataset

SUFFIXES = (".dcm", ".dicom")
MOST_PIXELS = 178_956_970  # where PIL refuses an image as a decompression bomb
HEADER = ["PatientID", "BurnedInAnnotation", "Modality", "Rows", "Columns", "NumberOfFrames"]
COPY_AGAIN = "remove it, or copy it again"


@dataclass(frozen=True)
class DicomHeader:
    """What a split or a report needs to know of a file, without the name of a person.

    Attributes:
        patient: a hash of the patient's identifier in 16 hexadecimal digits, equal for equal identifiers; None if the
            file has none. It keeps the identifier out of reports and logs, but does not anonymise: who guesses an
            identifier can check the guess.
        burned_in: whether the file says that text is burned into its pixels; None if it does not say.
        modality: such as "CT"; "" if the file does not say.
        size: width and height in pixels; (0, 0) if the file holds no image.
        frames: number of images in the file.
    """

    patient: str | None
    burned_in: bool | None
    modality: str
    size: tuple[int, int]
    frames: int


class _NamelessError(Exception):
    """A reason and a remedy, which still lack the file's name."""


def is_dicom(path: Path) -> bool:
    """Whether a file is a DICOM image, by its suffix, or by its content where the suffix says nothing.

    A damaged `.dcm` is one, so that it is told as damaged instead of being left out. A DICOMDIR is none: it is the
    table of contents of an exported disc. Needs no pydicom.
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
    """The header, without the pixels.

    Raises:
        DataError: pydicom is missing, or the file is missing, damaged or no DICOM file.
    """
    with _told(path):
        dataset = _read(path, stop_before_pixels=True, specific_tags=HEADER)
        burned_in = str(dataset.get("BurnedInAnnotation") or "").strip().upper()
        return DicomHeader(
            _patient(dataset),
            {"YES": True, "NO": False}.get(burned_in),
            str(dataset.get("Modality") or "").strip(),
            (int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0)),
            int(dataset.get("NumberOfFrames") or 1),
        )


def load_dicom(path: Path, window: tuple[float, float] | None = None) -> Image.Image:
    """The image as a screen would show it: RGB, 8 bits a channel.

    Greyscale goes through the modality lookup table or rescale; then through `window`, or else the file's own lookup
    table or first window, or else from the smallest value to the largest, padding left out. MONOCHROME1 is inverted.
    Unsigned 8-bit greyscale with neither rescale nor window is kept as it is: such files (secondary captures,
    ultrasound, photographs) hold display levels, and stretching would change the brightness from image to image.

    Args:
        path: a file of one frame.
        window: centre and width in rescaled units (Hounsfield units in CT): black at centre - width / 2 and below,
            white at centre + width / 2 and above, whatever the file's VOI LUT function. Ignored for colour.

    Raises:
        DataError: pydicom or a decoder is missing; the file is missing, damaged, or holds no pixels, several frames,
            more pixels than PIL accepts, or colours of an unknown kind; a window is too narrow.
    """
    with _told(path):
        dataset = _read(path)
        _check(dataset)
        _unfold(dataset)
        stored, kind = _decode(dataset)
        if kind in ("MONOCHROME1", "MONOCHROME2"):
            levels = _levels(dataset, stored, window)
            levels = 1 - levels if kind == "MONOCHROME1" else levels
            return Image.fromarray(np.rint(255 * levels).astype(np.uint8)).convert("RGB")
        if kind == "PALETTE COLOR":
            return Image.fromarray(_palette(dataset, stored))
        if kind == "RGB" and stored.ndim == 3:
            return Image.fromarray(_top_byte(stored, min(dataset.BitsStored, 8 * stored.itemsize)))
        raise _NamelessError(f"colours of the kind {kind} are not supported; export the image as RGB")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; correct the path, or copy it again") from error
    except _NamelessError as error:
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
        raise _NamelessError("reading DICOM needs pip install 'pfedst[dicom]'") from error
    try:
        return dcmread(path, **options)
    except InvalidDicomError as error:
        raise _NamelessError(f"not a DICOM file (no DICM at byte 128); {COPY_AGAIN}") from error


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
    if "PixelData" not in dataset:
        raise _NamelessError(f"no pixel data (cut short, or no image); {COPY_AGAIN}")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise _NamelessError(f"holds {frames} frames; export the frame wanted to a file of its own")
    width, height = int(dataset.get("Columns") or 0), int(dataset.get("Rows") or 0)
    if not 0 < width * height <= MOST_PIXELS:
        raise _NamelessError(f"{width} x {height} pixels are not between 1 and {MOST_PIXELS}; {COPY_AGAIN}")


def _unfold(dataset: Dataset) -> None:
    # enhanced objects, those of one frame included, keep rescale and window in nested groups
    for groups in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in (dataset.get(groups) or [])[:1]:
            for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for item in (group.get(name) or [])[:1]:
                    dataset.update(item)


def _decode(dataset: Dataset) -> tuple[NDArray[Any], str]:
    """Stored values, (height, width) or (height, width, 3), and their photometric interpretation: YBR is RGB now."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.decoders.pylibjpeg import DECODER_DEPENDENCIES

    syntax = dataset.file_meta.TransferSyntaxUID
    packages = " ".join(f"'{package}'" for package in DECODER_DEPENDENCIES.get(syntax, ()))
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise _NamelessError(f"{syntax.name} cannot be decoded; export the image uncompressed") from error
    if not decoder.is_available:
        raise _NamelessError(f"no decoder for {syntax.name} is installed; pip install {packages}")
    try:
        stored, found = decoder.as_array(dataset)
    except Exception as error:
        if not packages or "pylibjpeg" in decoder.available_plugins:
            raise
        # Pillow decodes JPEG Extended of 8 bits only, and no deep colour in JPEG 2000
        raise _NamelessError(f"{_line(error)}; {COPY_AGAIN}, or if it is whole pip install {packages}") from error
    if stored.shape[:2] != (dataset.Rows, dataset.Columns):
        raise _NamelessError(f"more pixel data than {dataset.Columns} x {dataset.Rows}; {COPY_AGAIN}")
    return stored, str(found["photometric_interpretation"])


@np.errstate(divide="raise", over="raise", invalid="raise")  # an absurd rescale must not become a black image
def _levels(dataset: Dataset, stored: NDArray[Any], window: tuple[float, float] | None) -> NDArray[Any]:
    """Grey as fractions of white, before MONOCHROME1 is inverted."""
    values = stored
    slope, intercept = _number(dataset, "RescaleSlope", 1), _number(dataset, "RescaleIntercept", 0)
    if tables := dataset.get("ModalityLUTSequence"):
        values = _look_up(dataset, tables[0].LUTDescriptor, tables[0].LUTData, stored)
    elif (slope, intercept) != (1, 0):
        values = stored * slope + intercept
    if window is not None:
        return _windowed(values, *window, "LINEAR_EXACT")
    if tables := dataset.get("VOILUTSequence"):
        found = _look_up(dataset, tables[0].LUTDescriptor, tables[0].LUTData, values)
        return np.clip(found / float(2 ** tables[0].LUTDescriptor[2] - 1), 0, 1)
    centre, width = _number(dataset, "WindowCenter", math.nan), _number(dataset, "WindowWidth", math.nan)
    if not math.isnan(centre + width):
        return _windowed(values, centre, width, str(dataset.get("VOILUTFunction") or "LINEAR").upper())
    if values is stored and dataset.BitsStored == 8 and dataset.PixelRepresentation == 0:
        return np.clip(stored / 255, 0, 1)
    return _stretched(dataset, stored, values)


def _number(dataset: Dataset, keyword: str, missing: float) -> float:
    value = dataset.get(keyword)
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else None  # of several windows the first
    if value in (None, ""):
        return missing
    if not math.isfinite(float(value)):
        raise _NamelessError(f"{keyword} is {value}; {COPY_AGAIN}")
    return float(value)


def _look_up(dataset: Dataset, descriptor: Sequence[int], data: Any, values: NDArray[Any]) -> NDArray[Any]:
    """Entries of a table that says (number of entries, first value, bits); the ends go on for values outside."""
    entries, first = descriptor[0] or 2**16, descriptor[1]
    if first >= 2**15 and values.min() < 0:
        first -= 2**16  # -1024 that was written, or read, as unsigned
    if isinstance(data, bytes):
        words = "<u2" if dataset.original_encoding[1] else ">u2"
        table = np.frombuffer(data, "u1" if len(data) <= entries + 1 else words)  # bytes are padded to an even number
    else:
        table = np.atleast_1d(np.asarray(data, np.uint16))
    if len(table) < entries:
        raise _NamelessError(f"a lookup table has {len(table)} of its {entries} entries; {COPY_AGAIN}")
    places = np.clip(np.rint(values.astype(np.float64)) - first, 0, entries - 1)
    found: NDArray[Any] = np.take(table, places.astype(np.intp))
    return found


def _windowed(values: NDArray[Any], centre: float, width: float, function: str) -> NDArray[Any]:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, from 0 to 1."""
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise _NamelessError(f"the VOI LUT function {function} is unknown; give a window (centre, width)")
    least = "at least 1" if function == "LINEAR" else "more than 0"
    if not (math.isfinite(centre) and 0 < width < math.inf and (width >= 1 or function != "LINEAR")):
        raise _NamelessError(
            f"the window (centre {centre:g}, width {width:g}) needs a width of {least}; give another window"
        )
    values = values.astype(np.float64)  # unsigned minus a whole number would wrap around
    if function == "SIGMOID":
        # 1 / (1 + exp(-4 (values - centre) / width)), which would overflow
        return np.clip(0.5 + 0.5 * np.tanh(2 * (values - centre) / width), 0, 1)
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    if width == 0:
        return (values > centre).astype(np.float64)
    return np.clip((values - centre) / width + 0.5, 0, 1)


def _stretched(dataset: Dataset, stored: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """From the smallest value present to the largest. Padding lies beyond the dark end, so it comes out black."""
    present = values
    padding, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if padding is not None:
        # cast, as -2000 is often written as the unsigned 63536
        ends = np.array([padding, padding if limit is None else limit]).astype(stored.dtype)
        inside = (stored < ends.min()) | (stored > ends.max())
        present = values[inside] if inside.any() else values
    low, high = float(present.min()), float(present.max())
    if low == high:
        return np.zeros(values.shape)
    return np.clip((values - low) / (high - low), 0, 1)


def _palette(dataset: Dataset, stored: NDArray[Any]) -> NDArray[np.uint8]:
    entries, first, _ = dataset.RedPaletteColorLookupTableDescriptor
    values = np.arange(first, first + (entries or 2**16))
    if "RedPaletteColorLookupTableData" in dataset:
        names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
        tables = [(dataset[f"{name}Descriptor"].value, dataset[f"{name}Data"].value) for name in names]
        palette = np.stack([_look_up(dataset, *table, values) for table in tables], axis=-1)
    else:  # a segmented one
        from pydicom.pixels.processing import apply_color_lut

        palette = apply_color_lut(values, dataset)[:, :3]
    # whatever it says: 8-bit entries in 16-bit words are common
    colours: NDArray[np.uint8] = _top_byte(palette, 8 if palette.max() < 256 else 16)
    return np.take(colours, np.clip(stored.astype(np.int64) - int(first), 0, len(values) - 1), axis=0)


def _top_byte(levels: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    # exact for 8-bit levels widened by repetition as well as for those filled up with zeros
    return (levels >> max(bits - 8, 0)).astype(np.uint8)
