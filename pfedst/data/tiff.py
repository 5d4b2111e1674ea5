"""What Pillow does not know of TIFF: number types, byte orders and pages."""

from __future__ import annotations

import itertools
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

PHOTOMETRIC, BITS, SAMPLES, SAMPLE_FORMAT, SUBFILE, PLANES, FILL_ORDER = 262, 258, 277, 339, 254, 284, 266
APART = 2
WHITE_IS_ZERO = 0
KINDS = {1: "u", 2: "i", 3: "f"}
"""Values of SampleFormat -> kinds of a NumPy dtype."""
NOT_AN_IMAGE = 1 | 4
"""Flags of a page that belongs to another page: a smaller version, a transparency mask."""
NAMES = {1: "unsigned", 2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}

# Pillow's keys: byte order, photometric interpretation, sample format, fill order, bits, extra samples. Floats of 16
# bits are read as their bits. `setdefault`, because a later Pillow may know them.
for order, letter in ((TiffImagePlugin.II, ""), (TiffImagePlugin.MM, "B")):
    for photometric in (0, 1):
        for key, modes in {
            (1, 12): ("I;16", "I;12"),
            (1, 16): (f"I;16{letter}", f"I;16{letter}"),
            (3, 16): (f"I;16{letter}", f"I;16{letter}"),
            (2, 16): ("I", f"I;16{letter}S"),
            (1, 32): ("I", f"I;32{letter}S"),
            (2, 32): ("I", f"I;32{letter}S"),
            (3, 32): ("F", f"F;32{letter}F"),
            (3, 64): ("F", f"F;64{letter}F"),
        }.items():
            TiffImagePlugin.OPEN_INFO.setdefault((order, photometric, (key[0],), 1, (key[1],), ()), modes)


def tiff_values(image: TiffImagePlugin.TiffImageFile) -> NDArray[Any]:
    """Return the grey values (H, W) of a TIFF in their own number type. Before, the image must be deep (`is_deep`)."""
    kind, bits = number_type(image)
    values = np.asarray(image)
    if (kind, bits) in {("f", 16), ("i", 8), ("u", 32)}:  # Pillow has no mode of this type, and reads the bits alone
        return values.view(np.dtype(f"{kind}{bits // 8}").newbyteorder(values.dtype.byteorder))
    return values


def number_type(image: TiffImagePlugin.TiffImageFile) -> tuple[str, int]:
    """Return the kind of the first sample (u: unsigned, i: signed, f: floating-point) and its number of bits."""
    return KINDS.get(_first(image, SAMPLE_FORMAT, 1), "u"), _first(image, BITS, 1)


def white_is_zero(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Return True if small values are bright."""
    return bool(image.tag_v2.get(PHOTOMETRIC, WHITE_IS_ZERO) == WHITE_IS_ZERO)  # Pillow's default


def correct_tiles(image: TiffImagePlugin.TiffImageFile) -> None:
    """Correct how Pillow will unpack the values. Before, nothing may be decoded."""
    image.tile = [
        tile._replace(args=(_raw_mode(image, tile.codec_name, tile.args[0]), *tile.args[1:]))
        if isinstance(tile.args, tuple)
        else tile
        for tile in image.tile
    ]


def _raw_mode(image: TiffImagePlugin.TiffImageFile, codec: str, given: str) -> str:
    one_sample = image.mode in ("I", "F") or image.mode.startswith("I;16")
    kind, bits = number_type(image)
    if codec == "libtiff" and one_sample:  # which has put the bytes in order already
        return given.replace("B", "N")
    if codec != "raw" or image.tag_v2.get(PLANES) != APART or bits <= 8:
        return given
    # in planes, of which each has its own letter, Pillow takes that letter alone
    order = image.tag_v2.prefix
    if not one_sample:
        return f"{given};16{'B' if order == TiffImagePlugin.MM else 'L'}"
    number = next(number for number, letter in KINDS.items() if letter == kind)
    photometric, fill_order = (_first(image, tag, missing) for tag, missing in ((PHOTOMETRIC, 0), (FILL_ORDER, 1)))
    return TiffImagePlugin.OPEN_INFO[order, photometric, (number,), fill_order, (bits,), ()][1]


def pages(image: TiffImagePlugin.TiffImageFile) -> int:
    """Return the number of pages, or 1 if all others are smaller versions or masks of the first one."""
    flags = []
    for page in itertools.count():
        try:
            image.seek(page)
        except EOFError:
            break
        except SyntaxError:  # a page of a kind that Pillow does not read
            pass
        flags.append(int(image.tag_v2.get(SUBFILE, 0)))
    image.seek(0)
    own = [page for page, flag in enumerate(flags) if not flag & NOT_AN_IMAGE]
    return 1 if own == [0] else len(flags)


def kind_of(file: BinaryIO) -> str | None:
    """Return a description of the values of a TIFF; None for other content and for a damaged file."""
    try:
        file.seek(0)
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        samples, bits = tags.get(SAMPLES, 1), tags[BITS][0]
        numbers = NAMES.get(tags.get(SAMPLE_FORMAT, (1,))[0], "unknown")
    except Exception:  # Pillow raises many kinds for damaged files
        return None
    return f"a TIFF with {samples} {numbers} values of {bits} bits for each pixel"


def _first(image: TiffImagePlugin.TiffImageFile, tag: int, missing: int) -> int:
    value: Any = image.tag_v2.get(tag, missing)
    return int(value[0] if isinstance(value, tuple) else value)
