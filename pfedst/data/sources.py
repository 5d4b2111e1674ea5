"""Sources of images."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Protocol

from PIL import Image

from pfedst.data.decoding import ImageHeader, decode, image_header, unreadable
from pfedst.data.dicom.reader import is_dicom, load_dicom, read_header
from pfedst.data.grey_scale import GreyScale


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
    """Image files that PIL can read, and DICOM files.

    Args:
        paths: the files.
        grey_scale: range of grey values of the data set.
    """

    paths: Sequence[Path]
    grey_scale: GreyScale = field(default_factory=GreyScale)

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.paths)

    def load(self, index: int) -> Image.Image:
        """Open a file, apply its EXIF orientation and convert it to RGB (palettes, grey, CMYK and alpha included).

        Raises:
            DataError: If the file is missing, truncated, not an image, holds several images or grey values of an
                unclear range, or is so large that it may be an attack.
        """
        path = self.paths[index]
        if is_dicom(path):
            return load_dicom(path, self.grey_scale.window, partial(self.grey_scale.report_guess, str(path)))
        return decode(path, str(path), self.grey_scale)

    def digest(self, index: int) -> str:
        """Return a hash of the file's bytes, and of the range of grey values if the user gives one.

        Raises:
            DataError: If the file cannot be read.
        """
        try:
            return _pixel_digest(self.paths[index].read_bytes(), self.grey_scale)
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
            return ImageHeader(*found.size, found.modality, found.burned_in, found.grey)
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
        grey_scale: range of grey values of the data set.
    """

    read: Callable[[int], bytes]
    names: Sequence[str]
    files: Sequence[Path | None] = ()
    grey_scale: GreyScale = field(default_factory=GreyScale)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def load(self, index: int) -> Image.Image:
        """Decode an image, as `FileSource` does.

        Raises:
            DataError: If the bytes are truncated or not an image.
        """
        return decode(BytesIO(self.read(index)), self.names[index], self.grey_scale)

    def digest(self, index: int) -> str:
        """Return a hash of the bytes, and of the range of grey values if the user gives one."""
        return _pixel_digest(self.read(index), self.grey_scale)

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
    if isinstance(source, JoinedSource):
        found = {id(part): _paths(part) for part, _ in source.places}
        return [found[id(part)][index] if found[id(part)] else None for part, index in source.places]
    if isinstance(source, EncodedSource):
        return source.files
    return source.paths if isinstance(source, FileSource) else []


def content_digest(content: bytes | memoryview) -> str:
    """Return a hash of 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _pixel_digest(content: bytes, grey_scale: GreyScale) -> str:
    """Return a hash of everything that decides the pixels, so that no cache serves those of another range."""
    digest = content_digest(content)
    return digest if grey_scale.given is None else content_digest(f"{digest} {grey_scale.given}".encode())
