"""Where images come from, and how a bad one is told."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.progress import track

from pfedst.errors import DataError

LISTED = 10


class ImageSource(Protocol):
    """Images by index; a data set does not know whether they lie on disk."""

    def load(self, index: int) -> Image.Image:
        """The image, in RGB."""
        ...

    def digest(self, index: int) -> str:
        """A hash of the image's content, in 32 hexadecimal digits: equal images are one image to a cache."""
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
    """Image files."""

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
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path) as image:
                    if image.mode.startswith("I;16") or image.mode == "I":
                        # 16-bit grey: PIL's own conversion to RGB clips instead of scaling
                        image = image.point(lambda value: value / 256).convert("L")
                    return ImageOps.exif_transpose(image).convert("RGB")
        except Exception as error:  # PIL raises many kinds for damaged files
            raise DataError(f"{path}: {_reason(error)}; remove it, or copy it again") from error

    def digest(self, index: int) -> str:
        """Of the file's bytes.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            return content_digest(self.paths[index].read_bytes())
        except OSError as error:
            raise DataError(f"{self.paths[index]}: {_reason(error)}; remove it, or copy it again") from error


@dataclass(frozen=True)
class Subset:
    """Some images of a source."""

    source: ImageSource
    indices: Sequence[int]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.indices)

    def load(self, index: int) -> Image.Image:
        """The image."""
        return self.source.load(self.indices[index])

    def digest(self, index: int) -> str:
        """Of its content."""
        return self.source.digest(self.indices[index])


class JoinedSource:
    """Several sources as one.

    Args:
        sources: in a fixed order.
    """

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self.places = [(source, index) for source in sources for index in range(len(source))]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.places)

    def load(self, index: int) -> Image.Image:
        """The image."""
        source, own_index = self.places[index]
        return source.load(own_index)

    def digest(self, index: int) -> str:
        """Of its content."""
        source, own_index = self.places[index]
        return source.digest(own_index)


def content_digest(content: bytes | memoryview) -> str:
    """32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return str(error) or type(error).__name__


def verify(paths: Sequence[Path]) -> None:
    """Decode every file before training starts.

    Raises:
        DataError: all bad files at once, the first ten by name.
    """

    def fault(path: Path) -> str | None:
        try:
            FileSource([path]).load(0)
        except DataError as error:
            return str(error).rsplit(";", 1)[0]
        return None

    console = Console(stderr=True)
    with ThreadPoolExecutor() as pool:
        results = track(
            pool.map(fault, paths, chunksize=16),
            "checking images",
            total=len(paths),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        faults = [fault for fault in results if fault]
    if faults:
        more = f"\n  and {len(faults) - LISTED} more" if len(faults) > LISTED else ""
        raise DataError(
            f"{len(faults)} of {len(paths)} images cannot be read:\n  "
            + "\n  ".join(faults[:LISTED])
            + more
            + "\nRemove them (and their rows), or copy them again; nothing was trained."
        )
