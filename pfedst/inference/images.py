"""The images of a prediction: files, folders, DICOM, images of Pillow, and arrays; each may be unreadable by itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from pfedst.data.folders import is_hidden, is_image
from pfedst.data.grey_scale import GreyScale, PixelRange
from pfedst.data.sources import FileSource
from pfedst.data.transforms import evaluation_transform
from pfedst.encoders import Preprocessing
from pfedst.errors import DataError


@dataclass(frozen=True)
class Item:
    """One image of a prediction.

    Attributes:
        name: its path, or its number among the images that have none.
        content: a path; or an image of Pillow, or an array, in memory.
        path: the file; None for an image in memory.
    """

    name: str
    content: Any
    path: Path | None

    def load(self, grey_scale: GreyScale) -> tuple[Image.Image, str]:
        """Return the image in RGB, and the SHA-256 of its file, or of the pixels of an image in memory.

        Raises:
            DataError: the image cannot be read.
        """
        if self.path is not None:
            image = FileSource([self.path], grey_scale).load(0)
            return image, hashlib.sha256(self.path.read_bytes()).hexdigest()
        image = self._from_memory()
        return image, hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()

    def _from_memory(self) -> Image.Image:
        if isinstance(self.content, Image.Image):
            if self.content.mode not in ("RGB", "L", "P", "1", "RGBA", "LA", "CMYK", "YCbCr"):
                raise DataError(
                    f"{self.name}: an image of mode {self.content.mode} has no known range of grey values; give its "
                    f"file, or convert it to 8 bits"
                )
            return self.content.convert("RGB")
        array = np.asarray(self.content)
        if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
            raise DataError(
                f"{self.name}: an array of shape {array.shape} and type {array.dtype}; give (height, width, 3) or "
                f"(height, width) of uint8"
            )
        if not array.size:
            raise DataError(f"{self.name}: an empty array of shape {array.shape}")
        return Image.fromarray(array).convert("RGB")


def reader(preprocessing: Preprocessing, pixel_range: PixelRange | None) -> Callable[[Item], tuple[Tensor, str]]:
    """Return the function that reads an image for an encoder: (3, S, S), normalised, and its SHA-256 (see `Item.load`).

    Args:
        preprocessing: of the encoder.
        pixel_range: grey values that become black and white; None if each file decides.
    """
    transform, grey_scale = evaluation_transform(preprocessing), GreyScale(pixel_range)

    def read(item: Item) -> tuple[Tensor, str]:
        image, sha256 = item.load(grey_scale)
        return transform(image), sha256

    return read


def items_of(images: Any) -> list[Item]:
    """Return the images that a caller names.

    Args:
        images: a path, a folder (with all folders in it), an image of Pillow, an array (H, W, 3), (H, W) or of
            several images (B, H, W, 3) of uint8, or an iterable of these.

    Raises:
        DataError: nothing is named, or a folder holds no image.
    """
    found = list(_items(images))
    if not found:
        raise DataError("no image is named: give files or folders of images")
    return found


def _items(images: Any) -> Iterator[Item]:
    several = isinstance(images, np.ndarray) and images.ndim == 4
    alone = isinstance(images, str | Path | Image.Image | np.ndarray) or not isinstance(images, Iterable)
    for number, content in enumerate([images] if alone and not several else images):
        if not isinstance(content, str | Path):
            yield Item(str(number), content, None)
        elif Path(content).is_dir():
            yield from (Item(_shown(path), path, path) for path in _in_folder(Path(content)))
        else:
            yield Item(_shown(Path(content)), content, Path(content))


def _in_folder(folder: Path) -> list[Path]:
    """Return the images of a folder and of all folders in it, sorted; hidden ones are left out.

    Raises:
        DataError: there is none.
    """
    found = [
        path
        for path in folder.rglob("*")
        if not any(is_hidden(part) for part in path.relative_to(folder).parts) and path.is_file() and is_image(path)
    ]
    if not found:
        raise DataError(f"{folder} holds no image; give a folder with images, or image files")
    return sorted(found)


def _shown(path: Path) -> str:
    """Return a path that can be printed and saved: undecodable bytes are escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode()
