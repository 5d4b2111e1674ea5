"""What a store can hold, and how its rows are made of the images."""

from __future__ import annotations

import hashlib
import json
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pfedst.data.cache.layout import ImageLayout, Layout, PieceLayout, TapLayout
from pfedst.data.cache.store import CHANNELS, ImageStore, Store, TapStore, WholeImageStore
from pfedst.data.datasets import SiteDataset
from pfedst.encoders import Encoder, Need, Preprocessing, TapDtype

IMAGES_A_STEP = 32


class Wanted(NamedTuple):
    """An image that a store shall hold: its key, where to load it, and its augmented view, None for the plain image."""

    key: str
    dataset: SiteDataset
    position: int
    view: int | None


class Content:
    """A kind of store in a folder of caches.

    Attributes:
        kind: what a row holds.
        store: the store. Opening it may read all weights of an encoder, whose hash is a part of its name.
    """

    kind: Need
    store: Store
    images_a_step: int = IMAGES_A_STEP

    def bytes_of(self, wanted: Sequence[Wanted]) -> int:
        """Return the bytes of the rows of so many images."""
        return len(wanted) * self.store.layout.row_bytes

    @abstractmethod
    def holds(self, wanted: Wanted) -> bool:
        """Return True if the store has a row for such an image."""

    @abstractmethod
    def load(self, wanted: Wanted) -> Tensor:
        """Return one image from which its row is made; possibly in a process of its own."""

    @abstractmethod
    def append(self, keys: Sequence[str], images: Sequence[Tensor], device: torch.device) -> None:
        """Write the rows of a batch of images, within `store.writing`.

        Args:
            keys: of the images.
            images: as `load` returns them.
            device: where to compute.
        """

    def convert(self, keys: Sequence[str]) -> None:
        """Add rows that need no image, within `store.writing`."""


class ImageContent(Content):
    """Decoded images, cut to squares of 8-bit pixels by the resize mode of the encoder.

    The store depends on size, interpolation and resize mode, not on the encoder.

    Args:
        folder: of the caches.
        preprocessing: of the encoder.
    """

    kind: Need = "images"

    def __init__(self, folder: Path, preprocessing: Preprocessing) -> None:
        kept = ("image_size", "interpolation", "resize_mode")
        identity = {"square": {name: getattr(preprocessing, name) for name in kept}}
        layout = ImageLayout(preprocessing.image_size)
        name = f"{layout.image_size}px-images-{layout.dtype}-{_digest(identity, layout)}"
        self.store: ImageStore = ImageStore(folder / name, layout, identity)

    def holds(self, wanted: Wanted) -> bool:
        """Return True for a plain image: augmentation is applied to what is read."""
        return wanted.view is None

    def load(self, wanted: Wanted) -> Tensor:
        """Return the square (3, S, S), uint8."""
        return wanted.dataset.squares([wanted.position])[0]

    def append(self, keys: Sequence[str], images: Sequence[Tensor], device: torch.device) -> None:
        """Write the pixels themselves."""
        self.store.append(keys, {"pixels": torch.stack(list(images))})


class WholeImageContent(Content):
    """Decoded training images as they are, for crops that are drawn anew in each epoch.

    The store depends on the images alone.

    Args:
        folder: of the caches.
    """

    kind: Need = "images"
    images_a_step = 4

    def __init__(self, folder: Path) -> None:
        identity, layout = {"whole": "RGB"}, PieceLayout()
        name = f"whole-images-{layout.dtype}-{_digest(identity, layout)}"
        self.store: WholeImageStore = WholeImageStore(folder / name, layout, identity)
        self._bytes: dict[str, int] = {}

    def holds(self, wanted: Wanted) -> bool:
        """Return True for a plain image."""
        return wanted.view is None

    def load(self, wanted: Wanted) -> Tensor:
        """Return the image (H, W, 3), uint8."""
        return torch.from_numpy(np.array(wanted.dataset.source.load(wanted.position)))

    def bytes_of(self, wanted: Sequence[Wanted]) -> int:
        """Return the bytes that sizes in the headers of the images lead to."""
        for item in wanted:
            if item.key not in self._bytes:  # a header is read once
                header = item.dataset.source.header(item.position)
                pieces = self.store.pieces(header.width * header.height * CHANNELS)
                self._bytes[item.key] = pieces * self.store.layout.piece_bytes
        return sum(self._bytes[item.key] for item in wanted)

    def append(self, keys: Sequence[str], images: Sequence[Tensor], device: torch.device) -> None:
        """Write the images as they are."""
        self.store.append_images(keys, images)


class TapContent(Content):
    """Output of an encoder.

    Args:
        folder: of the caches.
        encoder: the encoder.
        kind: `pooled`, `tokens` or `taps`.
        dtype: storage type of tokens and taps.
    """

    def __init__(self, folder: Path, encoder: Encoder, kind: Need, dtype: TapDtype) -> None:
        self.folder = folder
        self.encoder = encoder
        self.kind = kind
        self.dtype = dtype

    @cached_property
    def store(self) -> TapStore:  # type: ignore[override]
        """The store. Equal encoder, preprocessing, kind and dtype give the same folder."""
        identity: dict[str, Any] = {
            "encoder": self.encoder.identity,
            # lists, as a manifest gives them
            "preprocessing": dict(json.loads(json.dumps(asdict(self.encoder.preprocessing)))),
        }
        corrected = self.encoder.identity.get("token_grid") is not None
        layout = TapLayout.of(self.encoder.spec, self.kind, self.dtype, corrected)
        model = re.sub(r"[^\w.-]+", "_", str(self.encoder.identity.get("model", "encoder")))
        size = self.encoder.spec.image_size
        name = f"{model}-{size}px-{self.kind}-{layout.dtype}-{_digest(identity, layout)}"
        return TapStore(self.folder / name, layout, identity)

    def holds(self, wanted: Wanted) -> bool:
        """Return True: each augmented view has a row."""
        return True

    def load(self, wanted: Wanted) -> Tensor:
        """Return the image as it enters the encoder."""
        dataset, position = wanted.dataset, wanted.position
        seeds = None if wanted.view is None else [dataset.view_seed(position, wanted.view)]
        return dataset.images([position], seeds)[0]

    def append(self, keys: Sequence[str], images: Sequence[Tensor], device: torch.device) -> None:
        """Write what the encoder gives for normalised images."""
        needs: tuple[Need, ...] = ("pooled",) if self.kind == "pooled" else ("pooled", self.kind)
        self.encoder.to(device)
        answers = self.encoder.encode(torch.stack(list(images)).to(device), needs)
        self.store.append(keys, self.store.layout.pack(answers))

    def convert(self, keys: Sequence[str]) -> None:
        """Convert rows of the float32 store, if it has them: another dtype needs no pass through the tower."""
        if self.store.layout.dtype == "float32":
            return
        exact = TapContent(self.folder, self.encoder, self.kind, "float32").store
        known = [key for key in keys if key in exact.row_of]
        needs: tuple[Need, ...] = ("pooled", self.kind)
        for start in range(0, len(known), IMAGES_A_STEP):
            batch = known[start : start + IMAGES_A_STEP]
            rows = torch.tensor([exact.row_of[key] for key in batch])
            answers = {need: exact.read(rows, need).decode() for need in needs}
            self.store.append(batch, self.store.layout.pack(answers))


def _digest(identity: Mapping[str, Any], layout: Layout) -> str:
    text = json.dumps([identity, vars(layout)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
