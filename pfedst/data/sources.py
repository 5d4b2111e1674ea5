"""Sources of images, and the errors for images that cannot be read."""

from __future__ import annotations

import hashlib
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol

from PIL import Image, ImageOps, UnidentifiedImageError

from pfedst.data.dicom.reader import is_dicom, load_dicom, read_header
from pfedst.data.jpeg import check_scans
from pfedst.errors import DataError

FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF"),
    "WEBP",
)
"""Formats that are opened, whatever the file name. By default PIL passes PostScript to Ghostscript, an interpreter."""


@dataclass(frozen=True)
class ImageHeader:
    """Metadata of an image file: width and height in pixels, PIL's mode (or DICOM's modality).

    `burned_in` is the DICOM attribute on text within the image, None if the file does not state it.
    """

    width: int
    height: int
    mode: str
    burned_in: bool | None = None


class ImageSource(Protocol):
    """Images by index. A data set does not know whether the images are on disk."""

    def load(self, index: int) -> Image.Image:
        """Return the image in RGB."""
        ...

    def digest(self, index: int) -> str:
        """Return a hash of the image's content, 32 hexadecimal digits. A cache stores equal images once."""
        ...

    def name(self, index: int) -> str:
        """Return the name of the image for the user: a path or a row."""
        ...

    def header(self, index: int) -> ImageHeader:
        """Return size and mode without decoding the image."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...


@dataclass(frozen=True)
class Record:
    """A labelled image file. Images of one `group` (a patient, a lesion) are never split over train and validation."""

    path: Path
    label: int
    group: str | None = None


@dataclass(frozen=True)
class FileSource:
    """Image files that PIL can read, and DICOM files."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def load(self, index: int) -> Image.Image:
        """Open a file, apply its EXIF orientation and convert it to RGB (palettes, grey, CMYK and alpha included).

        Raises:
            DataError: If the file is missing, truncated, not an image, or so large that it may be an attack.
        """
        path = self.paths[index]
        return load_dicom(path) if is_dicom(path) else decode(path, str(path))

    def digest(self, index: int) -> str:
        """Return a hash of the file's bytes.

        Raises:
            DataError: If the file cannot be read.
        """
        try:
            return content_digest(self.paths[index].read_bytes())
        except OSError as error:
            raise unreadable(str(self.paths[index]), error) from error

    def name(self, index: int) -> str:
        """Return the path. Undecodable bytes are escaped, so that the path can be printed and saved."""
        return str(self.paths[index]).encode("utf-8", "backslashreplace").decode()

    def header(self, index: int) -> ImageHeader:
        """Return size and mode of a file.

        Raises:
            DataError: If the file cannot be read.
        """
        path = self.paths[index]
        if is_dicom(path):
            found = read_header(path)
            return ImageHeader(*found.size, found.modality, found.burned_in)
        return image_header(path, str(path))

    @staticmethod
    def paths_of(source: ImageSource) -> list[Path]:
        """Return the files of a source, or an empty list if it has no files."""
        return [path for path in _paths(source) if path is not None]

    def group(self, index: int) -> str | None:
        """Return a hash of the patient if the file names one, as DICOM does; never the identifier in clear."""
        path = self.paths[index]
        return read_header(path).patient if is_dicom(path) else None


@dataclass(frozen=True)
class EncodedSource:
    """Encoded images (JPEG, PNG and so on) in memory or in a table.

    Args:
        read: index -> bytes.
        names: name of each image.
        files: file that `read` reads for each image, None for an image without its own file. Empty: no image has a
            file.
    """

    read: Callable[[int], bytes]
    names: Sequence[str]
    files: Sequence[Path | None] = ()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def load(self, index: int) -> Image.Image:
        """Decode an image, as `FileSource` does.

        Raises:
            DataError: If the bytes are truncated or not an image.
        """
        return decode(BytesIO(self.read(index)), self.names[index])

    def digest(self, index: int) -> str:
        """Return a hash of the bytes."""
        return content_digest(self.read(index))

    def name(self, index: int) -> str:
        """Return the name of the image."""
        return self.names[index]

    def header(self, index: int) -> ImageHeader:
        """Return size and mode of the image."""
        return image_header(BytesIO(self.read(index)), self.names[index])


class Rearranged:
    """Base class of sources that give images of other sources in another order."""

    @abstractmethod
    def place(self, index: int) -> tuple[ImageSource, int]:
        """Return the source of an image and the index of the image in it."""

    def load(self, index: int) -> Image.Image:
        """Return the image in RGB."""
        source, own_index = self.place(index)
        return source.load(own_index)

    def digest(self, index: int) -> str:
        """Return a hash of the image's content."""
        source, own_index = self.place(index)
        return source.digest(own_index)

    def name(self, index: int) -> str:
        """Return the name of the image in its source."""
        source, own_index = self.place(index)
        return source.name(own_index)

    def header(self, index: int) -> ImageHeader:
        """Return size and mode."""
        source, own_index = self.place(index)
        return source.header(own_index)


@dataclass(frozen=True)
class Subset(Rearranged):
    """A part of the images of a source."""

    source: ImageSource
    indices: Sequence[int]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.indices)

    def place(self, index: int) -> tuple[ImageSource, int]:
        """Return the source and the index of an image in it."""
        return self.source, self.indices[index]


class JoinedSource(Rearranged):
    """Several sources joined to one.

    Args:
        sources: sources in a fixed order.
    """

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self.places = [(source, index) for source in sources for index in range(len(source))]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.places)

    def place(self, index: int) -> tuple[ImageSource, int]:
        """Return the source that holds the image and the index of the image in it."""
        return self.places[index]


def _paths(source: ImageSource) -> Sequence[Path | None]:
    """Return the file of each image, or an empty list if the source has no files."""
    if isinstance(source, Subset):
        paths = _paths(source.source)
        return [paths[index] for index in source.indices] if paths else []
    if isinstance(source, EncodedSource):
        return source.files
    return source.paths if isinstance(source, FileSource) else []


def decode(opened: Path | BinaryIO, name: str) -> Image.Image:
    """Decode an image to RGB and apply its EXIF orientation.

    Raises:
        DataError: If the image is missing, truncated, not an image, or so large that it may be an attack.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(opened, formats=known_formats()) as image:
                if image.format in ("JPEG", "MPO"):
                    check_scans(_content(image))
                if image.mode.startswith("I;16") or image.mode == "I":
                    # 16-bit grey: PIL's own conversion to RGB clips instead of scaling
                    image = image.point(lambda value: value / 256).convert("L")
                return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # PIL raises many kinds for damaged files
        raise unreadable(name, error) from error


@cache
def known_formats() -> tuple[str, ...]:
    """Return the names in `FORMATS` that the installed Pillow supports. An unsupported name would raise KeyError."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _content(image: Image.Image) -> bytes:
    """Return all bytes of an opened image that is not decoded yet."""
    file = image.fp  # type: ignore[attr-defined]
    place = file.tell()
    file.seek(0)
    content: bytes = file.read()
    file.seek(place)
    return content


def image_header(opened: Path | BinaryIO, name: str) -> ImageHeader:
    """Return size and mode of an encoded image.

    Raises:
        DataError: If the image is missing or not an image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(opened, formats=known_formats()) as image:
                return ImageHeader(image.width, image.height, image.mode)
    except Exception as error:  # PIL raises many kinds for damaged files
        raise unreadable(name, error) from error


def content_digest(content: bytes | memoryview) -> str:
    """Return a hash of 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def unreadable(name: str, error: Exception) -> DataError:
    """Return the error for an image that cannot be read."""
    if isinstance(error, FileNotFoundError):
        reason = "no such file"
    elif isinstance(error, UnidentifiedImageError):
        reason = "not an image"
    else:
        reason = str(error) or type(error).__name__
    return DataError(f"{name}: {reason}; remove it, or copy it again")
