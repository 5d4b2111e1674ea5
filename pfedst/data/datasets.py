"""The data set of one site and split, read in whole batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pfedst.data.cache.store import ImageStore, WholeImageStore
from pfedst.data.sampling import Draws
from pfedst.data.sources import ImageSource, JoinedSource
from pfedst.data.transforms import ImageTransform
from pfedst.seeds import derive_seed


@dataclass(frozen=True)
class StoredSquares:
    """The squares of a data set in a store.

    Attributes:
        store: the store.
        rows: (N,) row of each image.
    """

    store: ImageStore
    rows: Tensor


@dataclass(frozen=True)
class StoredImages:
    """The whole images of a data set in a store.

    Attributes:
        store: the store.
        rows: row of each image.
    """

    store: WholeImageStore
    rows: Sequence[int]


class SiteDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and class indices of one site and split.

    Args:
        source: source of the images.
        labels: class index of each image.
        transform: makes the input of the encoder from an image.
        views: fixed number of augmented views per image over all epochs; 0 for a new view at each draw.
        stored: squares that need not be decoded again; None to decode each image when it is read.
        whole: the same of the images from which random crops are cut.
    """

    def __init__(
        self,
        source: ImageSource,
        labels: Sequence[int],
        transform: ImageTransform,
        views: int = 0,
        stored: StoredSquares | None = None,
        whole: StoredImages | None = None,
    ) -> None:
        self.source = source
        self.labels = list(labels)
        self.transform = transform
        self.views = views
        self.stored = stored
        self.whole = whole

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return a batch of images (B, 3, S, S), float32, and their class indices (B,)."""
        seeds = None
        if draws.seed is not None and self.transform.augments:
            seeds = draws.seeds
            if self.views:
                pairs = zip(draws.positions, seeds, strict=True)
                seeds = [self.view_seed(position, seed % self.views) for position, seed in pairs]
        labels = torch.tensor([self.labels[position] for position in draws.positions])
        return self.images(draws.positions, seeds), labels

    def images(self, positions: Sequence[int], seeds: Sequence[int] | None = None) -> Tensor:
        """Return images (B, 3, S, S), float32, as input of the encoder; augmented with `seeds`."""
        if seeds is None:
            return self.transform.normalised(self.squares(positions))
        if self.transform.cuts_at_random:
            pairs = zip(positions, seeds, strict=True)
            pixels = torch.stack([self.transform.random_square(self._whole(p), seed) for p, seed in pairs])
        else:
            pixels = self.transform.augmented(self.squares(positions), seeds)
        return self.transform.normalised(pixels)

    def squares(self, positions: Sequence[int]) -> Tensor:
        """Return images (B, 3, S, S), uint8, that are not augmented."""
        if self.stored is not None:
            return self.stored.store.read(self.stored.rows[torch.tensor(positions)])
        return torch.stack([self.transform.square(self.source.load(position)) for position in positions])

    def _whole(self, position: int) -> Image.Image:
        """Return an image in RGB, as it is."""
        if self.whole is None:
            return self.source.load(position)
        return Image.fromarray(self.whole.store.read(self.whole.rows[position]).numpy())

    def view_seed(self, position: int, view: int) -> int:
        """Return the seed of an augmented view. It depends on the image alone, so all runs share the view."""
        return derive_seed(view, "view", self.source.digest(position))

    @classmethod
    def joined(cls, parts: Sequence[SiteDataset]) -> SiteDataset:
        """Join several data sets with the same transforms to one."""
        first, labels = parts[0], [label for part in parts for label in part.labels]
        sources = JoinedSource([part.source for part in parts])
        squares = [part.stored for part in parts if part.stored is not None]
        stored = replace(squares[0], rows=torch.cat([of.rows for of in squares])) if squares else None
        images = [part.whole for part in parts if part.whole is not None]
        whole = replace(images[0], rows=[row for of in images for row in of.rows]) if images else None
        return cls(sources, labels, first.transform, first.views, stored, whole)
