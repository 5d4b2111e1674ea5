"""Where images come from, and how a bad one is told."""

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
"""What is opened, whatever the file's name says. Left to itself PIL hands PostScript to Ghostscript, an interpreter."""


@dataclass(frozen=True)
class ImageHeader:
    """What a file says of its image without its pixels: sides in pixels, PIL's mode (or DICOM's modality).

    `burned_in` is DICOM's own word on text within the image, None where there is none.
    """

    width: int
    height: int
    mode: str
    burned_in: bool | None = None


class ImageSource(Protocol):
    """Images by index; a data set does not know whether they lie on disk."""

    def load(self, index: int) -> Image.Image:
        """The image, in RGB."""
        ...

    def digest(self, index: int) -> str:
        """A hash of the image's content, in 32 hexadecimal digits: equal images are one image to a cache."""
        ...

    def name(self, index: int) -> str:
        """What a user knows the image by: a path, or a row."""
        ...

    def header(self, index: int) -> ImageHeader:
        """Size and mode, without decoding it."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...


@dataclass(frozen=True)
class Record:
    """One labelled image file; `group` (a patient, a lesion) is never split over train and validation."""

    path: Path
    label: int
    group: str | None = None


@dataclass(frozen=True)
class FileSource:
    """Image files: what PIL reads, and DICOM."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        """Number of files."""
        return len(self.paths)

    def load(self, index: int) -> Image.Image:
        """Open, turn as EXIF says, and convert to RGB (palettes, grey, CMYK and alpha included).

        Raises:
            DataError: the file is missing, truncated, no image, or so large that it may be an attack.
        """
        path = self.paths[index]
        return load_dicom(path) if is_dicom(path) else decode(path, str(path))

    def digest(self, index: int) -> str:
        """Of the file's bytes.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            return content_digest(self.paths[index].read_bytes())
        except OSError as error:
            raise unreadable(str(self.paths[index]), error) from error

    def name(self, index: int) -> str:
        """The path; bytes that are no text are spelled out, so that it can be printed and saved."""
        return str(self.paths[index]).encode("utf-8", "backslashreplace").decode()

    def header(self, index: int) -> ImageHeader:
        """Of the file.

        Raises:
            DataError: the file cannot be read.
        """
        path = self.paths[index]
        if is_dicom(path):
            found = read_header(path)
            return ImageHeader(*found.size, found.modality, found.burned_in)
        return image_header(path, str(path))

    @staticmethod
    def paths_of(source: ImageSource) -> list[Path]:
        """The files of a source; none where it holds no files."""
        return [path for path in _paths(source) if path is not None]

    def group(self, index: int) -> str | None:
        """The patient, where the file itself says one (as DICOM does); as a hash, never in clear."""
        path = self.paths[index]
        return read_header(path).patient if is_dicom(path) else None


@dataclass(frozen=True)
class EncodedSource:
    """Encoded images in memory or in a table: the bytes of JPEG, PNG and the like.

    Args:
        read: index -> bytes.
        names: what each is called.
        files: that `read` reads, None for an image that is in no file of its own; empty: none is.
    """

    read: Callable[[int], bytes]
    names: Sequence[str]
    files: Sequence[Path | None] = ()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.names)

    def load(self, index: int) -> Image.Image:
        """As of a file.

        Raises:
            DataError: truncated, or no image.
        """
        return decode(BytesIO(self.read(index)), self.names[index])

    def digest(self, index: int) -> str:
        """Of the bytes."""
        return content_digest(self.read(index))

    def name(self, index: int) -> str:
        """As given."""
        return self.names[index]

    def header(self, index: int) -> ImageHeader:
        """Of the bytes."""
        return image_header(BytesIO(self.read(index)), self.names[index])


class Rearranged:
    """Images of other sources, in another order."""

    @abstractmethod
    def place(self, index: int) -> tuple[ImageSource, int]:
        """The source of an image, and its index there."""

    def load(self, index: int) -> Image.Image:
        """The image."""
        source, own_index = self.place(index)
        return source.load(own_index)

    def digest(self, index: int) -> str:
        """Of its content."""
        source, own_index = self.place(index)
        return source.digest(own_index)

    def name(self, index: int) -> str:
        """As its source calls it."""
        source, own_index = self.place(index)
        return source.name(own_index)

    def header(self, index: int) -> ImageHeader:
        """Size and mode."""
        source, own_index = self.place(index)
        return source.header(own_index)


@dataclass(frozen=True)
class Subset(Rearranged):
    """Some images of a source."""

    source: ImageSource
    indices: Sequence[int]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.indices)

    def place(self, index: int) -> tuple[ImageSource, int]:
        """In the one source."""
        return self.source, self.indices[index]


class JoinedSource(Rearranged):
    """Several sources as one.

    Args:
        sources: in a fixed order.
    """

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self.places = [(source, index) for source in sources for index in range(len(source))]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.places)

    def place(self, index: int) -> tuple[ImageSource, int]:
        """In the source that holds it."""
        return self.places[index]


def _paths(source: ImageSource) -> Sequence[Path | None]:
    """Of every image the file, or nothing at all."""
    if isinstance(source, Subset):
        paths = _paths(source.source)
        return [paths[index] for index in source.indices] if paths else []
    if isinstance(source, EncodedSource):
        return source.files
    return source.paths if isinstance(source, FileSource) else []


def decode(opened: Path | BinaryIO, name: str) -> Image.Image:
    """An encoded image in RGB, turned as EXIF says.

    Raises:
        DataError: missing, truncated, no image, or so large that it may be an attack.
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
    """Those of `FORMATS` that the installed Pillow reads; to ask it for another is a KeyError."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _content(image: Image.Image) -> bytes:
    """All bytes of an image that is opened and not decoded yet."""
    file = image.fp  # type: ignore[attr-defined]
    place = file.tell()
    file.seek(0)
    content: bytes = file.read()
    file.seek(place)
    return content


def image_header(opened: Path | BinaryIO, name: str) -> ImageHeader:
    """Size and mode of an encoded image.

    Raises:
        DataError: missing, or no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(opened, formats=known_formats()) as image:
                return ImageHeader(image.width, image.height, image.mode)
    except Exception as error:  # PIL raises many kinds for damaged files
        raise unreadable(name, error) from error


def content_digest(content: bytes | memoryview) -> str:
    """32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def unreadable(name: str, error: Exception) -> DataError:
    """The one error for an image that cannot be read."""
    if isinstance(error, FileNotFoundError):
        reason = "no such file"
    elif isinstance(error, UnidentifiedImageError):
        reason = "not an image"
    else:
        reason = str(error) or type(error).__name__
    return DataError(f"{name}: {reason}; remove it, or copy it again")
