"""Convert stored DICOM values to grey levels and colours.

Rescale, lookup tables, windows and palettes follow PS3.3 C.7.6.3 and C.11.

pydicom 3.0 is not used for this: its index beyond an 8-bit table wraps around instead of taking the last entry, and its
windows turn dark into bright if the rescale slope is negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pfedst.data.limits import COPY_AGAIN, NamelessError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom import Dataset

Report = Callable[[float, float], None]


@np.errstate(divide="raise", over="raise", invalid="raise")  # an invalid rescale must not give a black image
def grey_levels(
    dataset: Dataset, stored: NDArray[Any], window: tuple[float, float] | None, report: Report | None = None
) -> NDArray[Any]:
    """Return grey levels as fractions of white (H, W), before MONOCHROME1 is inverted.

    Args:
        dataset: header of the file.
        stored: stored values (H, W).
        window: centre and width to use instead of those of the file.
        report: called with the smallest and the largest value if they become black and white, which is a guess.

    Raises:
        NamelessError: If a window is too narrow, or a table is damaged.
    """
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
    low, high = _extremes(dataset, stored, values)
    if report is not None:
        report(low, high)
    return np.clip((values - low) / (high - low), 0, 1) if low != high else np.zeros(values.shape)


def _number(dataset: Dataset, keyword: str, missing: float) -> float:
    value = dataset.get(keyword)
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else None  # of several windows the first
    if value in (None, ""):
        return missing
    if not math.isfinite(float(value)):
        raise NamelessError(f"{keyword} is {value}; {COPY_AGAIN}")
    return float(value)


def _look_up(dataset: Dataset, descriptor: Sequence[int], data: Any, values: NDArray[Any]) -> NDArray[Any]:
    """Look values up in a table with descriptor (number of entries, first value, bits).

    Values outside the table take its end entries.
    """
    entries, first = descriptor[0] or 2**16, descriptor[1]
    if first >= 2**15 and values.min() < 0:
        first -= 2**16  # -1024 that was written, or read, as unsigned
    if isinstance(data, bytes):
        words = "<u2" if dataset.original_encoding[1] else ">u2"
        table = np.frombuffer(data, "u1" if len(data) <= entries + 1 else words)  # bytes are padded to an even number
    else:
        table = np.atleast_1d(np.asarray(data, np.uint16))
    if len(table) < entries:
        raise NamelessError(f"a lookup table has {len(table)} of its {entries} entries; {COPY_AGAIN}")
    places = np.clip(np.rint(values.astype(np.float64)) - first, 0, entries - 1)
    found: NDArray[Any] = np.take(table, places.astype(np.intp))
    return found


def _windowed(values: NDArray[Any], centre: float, width: float, function: str) -> NDArray[Any]:
    """Apply a window as in PS3.3 C.11.2.1.2 and C.11.2.1.3; the result is in [0, 1]."""
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise NamelessError(f"the VOI LUT function {function} is unknown; give a window (centre, width)")
    least = "at least 1" if function == "LINEAR" else "more than 0"
    if not (math.isfinite(centre) and 0 < width < math.inf and (width >= 1 or function != "LINEAR")):
        raise NamelessError(
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


def _extremes(dataset: Dataset, stored: NDArray[Any], values: NDArray[Any]) -> tuple[float, float]:
    """Return the smallest and the largest value without padding. Padding lies beyond the dark end: it becomes black."""
    present = values
    padding, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if padding is not None:
        # cast, as -2000 is often written as the unsigned 63536
        ends = np.array([padding, padding if limit is None else limit]).astype(stored.dtype)
        inside = (stored < ends.min()) | (stored > ends.max())
        present = values[inside] if inside.any() else values
    return float(present.min()), float(present.max())


def palette_colours(dataset: Dataset, stored: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the colours (H, W, 3) of palette indices (H, W)."""
    entries, first, _ = dataset.RedPaletteColorLookupTableDescriptor
    values = np.arange(first, first + (entries or 2**16))
    if "RedPaletteColorLookupTableData" in dataset:
        names = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
        tables = [(dataset[f"{name}Descriptor"].value, dataset[f"{name}Data"].value) for name in names]
        palette = np.stack([_look_up(dataset, *table, values) for table in tables], axis=-1)
    else:  # a segmented one
        from pydicom.pixels.processing import apply_color_lut

        palette = apply_color_lut(values, dataset)[:, :3]
    # the descriptor is not used: 8-bit entries in 16-bit words are common
    colours: NDArray[np.uint8] = top_byte(palette, 8 if palette.max() < 256 else 16)
    return np.take(colours, np.clip(stored.astype(np.int64) - int(first), 0, len(values) - 1), axis=0)


def top_byte(levels: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Reduce levels of `bits` bits to 8 bits."""
    # exact for 8-bit levels widened by repetition as well as for those filled up with zeros
    return (levels >> max(bits - 8, 0)).astype(np.uint8)
