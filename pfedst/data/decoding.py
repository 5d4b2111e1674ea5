"""Decode images of any format that Pillow reads to 8-bit RGB, or say why an image cannot be read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from pfedst.data.grey_scale import BITS_16, LEAST_USED, GreyScale, PixelRange
from pfedst.data.jpeg import check_scans
from pfedst.data.limits import COPY_AGAIN, NamelessError, check_shape, check_single
from pfedst.data.tiff import correct_tiles, kind_of, number_type, pages, tiff_values, white_is_zero
from pfedst.errors import DataError

FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF"),
    "WEBP",
)
"""Formats that are opened, whatever the file name. By default PIL passes PostScript to Ghostscript, an interpreter."""
NOT_READ = (
    (128, b"DICM", "a DICOM file by its content; rename it to .dcm"),
    (4, b"ftyphei", "a HEIC photograph; save it as JPEG or PNG"),
    (4, b"ftypmif", "a HEIF photograph; save it as JPEG or PNG"),
    (0, b"\xff\xd8\xff", "a JPEG that is damaged, or lossless, or of 12 bits; copy it again, or save it as PNG"),
    (0, b"%PDF", "a PDF document; export its image as PNG"),
    (0, b"\x1f\x8b", "a compressed file; unpack it"),
)
"""Files that are whole, but are not read: place and bytes of their mark, and reason with remedy."""
SAVE_AS = "save it as grey of 8, 16 or 32 bits, or as colours of 8 or 16 bits"
SAVE_COLOURS = "save it with 8 bits a colour, from black to white"


@dataclass(frozen=True)
class ImageHeader:
    """Metadata of an image file: width and height in pixels, PIL's mode (or DICOM's modality).

    `burned_in` is the DICOM attribute on text within the image, None if the file does not state it. `deep` is True for
    grey images whose values a range turns into 8 bits.
    """

    width: int
    height: int
    mode: str
    burned_in: bool | None = None
    deep: bool = False


def decode(opened: Path | BinaryIO, name: str, grey_scale: GreyScale) -> Image.Image:
    """Decode an image to RGB and apply its EXIF orientation.

    Args:
        opened: file or its content.
        name: name of the image, for errors.
        grey_scale: range of grey values of the data set.

    Raises:
        DataError: If the image is missing, truncated, not an image, holds several images or grey values of an unclear
            range, or is so large that it may be an attack.
    """
    with _opened(opened, name) as image:
        if image.format in ("JPEG", "MPO"):
            check_scans(_content(image))
        if isinstance(image, TiffImageFile):
            correct_tiles(image)
        if _is_deep(image):
            return _grey(image, grey_scale, name).convert("RGB")
        colours = _has_deep_colours(image)
        image = ImageOps.exif_transpose(image)
        if image.mode == "La":  # grey that was multiplied by its alpha, for which Pillow has no conversion to RGB
            image = image.convert("LA")
        if colours:
            _check_colours(image, grey_scale, name)
        return image.convert("RGB")


def image_header(opened: Path | BinaryIO, name: str) -> ImageHeader:
    """Return size and mode of an encoded image.

    Raises:
        DataError: If the image is missing or not an image, or `decode` would refuse its shape.
    """
    with _opened(opened, name) as image:
        return ImageHeader(image.width, image.height, image.mode, deep=_is_deep(image))


@contextmanager
def _opened(opened: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """Open an image and check its shape and its number of pages; add its name to all errors."""
    try:
        # never by its path: PIL maps such a file into memory, and scrambles a TIFF that is turned by a quarter
        with opened.open("rb") if isinstance(opened, Path) else nullcontext(opened) as file, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _identified(file) as image:
                check_shape(*image.size)
                check_single(pages(image) if isinstance(image, TiffImageFile) else _frames(image), "page")
                yield image
    except NamelessError as error:
        raise DataError(f"{name}: {error}") from error
    except Exception as error:  # PIL raises many kinds for damaged files
        raise unreadable(name, error) from error


def _identified(file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file, formats=known_formats())
    except UnidentifiedImageError as error:
        if (kind := kind_of(file)) is not None:
            raise NamelessError(f"{kind}, which is not read; {SAVE_AS}") from error
        file.seek(0)
        start = file.read(132)
        for place, mark, reason in NOT_READ:
            if start[place : place + len(mark)] == mark:
                raise NamelessError(reason) from error
        raise


def _frames(image: Image.Image) -> int:
    # the first picture of an MPO is the photograph, as in any JPEG; small copies and gain maps for displays follow
    return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))


def _content(image: Image.Image) -> bytes:
    """Return all bytes of an opened image that is not decoded yet."""
    file = image.fp  # type: ignore[attr-defined]
    place = file.tell()
    file.seek(0)
    content: bytes = file.read()
    file.seek(place)
    return content


# -- grey values and colours of more than 8 bits -----------------------------------------------------------------------


def _is_deep(image: Image.Image) -> bool:
    """Return True for grey values that are no display levels: more than 8 bits, signed, or floating-point."""
    if image.mode == "L":
        return isinstance(image, TiffImageFile) and number_type(image) == ("i", 8)
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _grey(image: Image.Image, grey_scale: GreyScale, name: str) -> Image.Image:
    """Return 8 bits of grey. PIL's own conversion would clip the values instead of scaling them."""
    if not isinstance(image, TiffImageFile):
        declared = None if image.mode == "F" else BITS_16
        values = np.asarray(ImageOps.exif_transpose(image))
        return Image.fromarray(grey_scale.to_8_bits(values, declared, name))
    levels = grey_scale.to_8_bits(tiff_values(image), _declared(image), name)  # with the orientation, as PIL reads TIFF
    return Image.fromarray(255 - levels if white_is_zero(image) else levels)


def _declared(image: TiffImageFile) -> PixelRange | None:
    """Return the range of unsigned values of up to 16 bits. Values of 32 bits are no levels: nothing is so deep."""
    kind, bits = number_type(image)
    return (0, 2**bits - 1) if kind == "u" and bits <= 16 else None


def _has_deep_colours(image: Image.Image) -> bool:
    """Return True if colours have 16 bits in the file. PIL reads the upper 8 of them."""
    tiles = getattr(image, "tile", ())
    return any(";16" in str(tile.args) or (tile.codec_name == "ppm" and tile.args[-1] > 255) for tile in tiles)


def _check_colours(image: Image.Image, grey_scale: GreyScale, name: str) -> None:
    """Refuse colours that use at most 12 of their 16 bits, which are almost black."""
    most = max(int(np.asarray(image.getchannel(band)).max()) for band in image.getbands() if band not in "Aa")
    if 0 < most <= 256 // LEAST_USED:  # PPM is rounded, not cut to its upper bits
        raise NamelessError(f"its colours use at most 12 of their 16 bits, and are almost black; {SAVE_COLOURS}")
    grey_scale.report_dim(name, most, (0, 255))


@cache
def known_formats() -> tuple[str, ...]:
    """Return the names in `FORMATS` that the installed Pillow supports. An unsupported name would raise KeyError."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def unreadable(name: str, error: Exception) -> DataError:
    """Return the error for an image that cannot be read."""
    if isinstance(error, FileNotFoundError):
        reason = "no such file"
    elif isinstance(error, UnidentifiedImageError):
        reason = "not an image"
    else:
        reason = str(error) or type(error).__name__
    return DataError(f"{name}: {reason}; {COPY_AGAIN}")
