"""FederatedDataModule: the images of several sites, checked before the first epoch."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from pfedst.data.datasets import (
    Augmentation,
    PooledDataset,
    SeededSampler,
    SiteDataset,
    evaluation_transform,
    training_transform,
)
from pfedst.data.sources import FileSource, ImageSource, Record, verify
from pfedst.data.splitting import split_validation
from pfedst.encoders.spec import Preprocessing
from pfedst.errors import ConfigurationError, DataError
from pfedst.seeds import derive_seed, generator

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class LabelledImages:
    """Images of one site and split, before any transform."""

    source: ImageSource
    labels: Sequence[int]
    groups: Sequence[str | None] = field(default=())

    @classmethod
    def from_records(cls, records: Sequence[Record]) -> LabelledImages:
        """From files, ordered by path, so that the order of rows in a manifest changes nothing."""
        ordered = sorted(records, key=lambda record: str(record.path))
        return cls(FileSource([r.path for r in ordered]), [r.label for r in ordered], [r.group for r in ordered])


@dataclass(frozen=True)
class Sites:
    """What a subclass reads: class names, and for every site its splits (validation only if it is given)."""

    class_names: Sequence[str]
    splits: dict[str, dict[Split, LabelledImages]]


@dataclass(frozen=True)
class Subset:
    """Some images of a source."""

    source: ImageSource
    indices: Sequence[int]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.indices)

    def load(self, index: int) -> Any:
        """The image."""
        return self.source.load(self.indices[index])


class FederatedDataModule(LightningDataModule):
    """Base of every multi-site data set; a subclass says in `read` what there is.

    Attributes:
        label: what the data are, for the protocol.
        class_names: after `prepare`.
        sites: names, after `prepare`.

    Args:
        batch_size: images of one training step, >= 1; the last batch of an epoch may be smaller, none is dropped.
        evaluation_batch_size: images of one evaluation step, >= 1.
        validation_fraction: share of train that validation is cut from, in [0, 1), where a site has none of its own.
        split_seed: of that cut; apart from the run's seed, so that all runs share their splits.
        augmentation: of training images: `none`, `flips`, or `crops` (random resized crop and flips).
        num_workers: processes that load images; the bits do not depend on it.
        verify_images: decode every image before training, so that a damaged one is told at once.

    Raises:
        ConfigurationError: an option out of its range.
    """

    label: str = ""
    class_names: tuple[str, ...]
    sites: tuple[str, ...]

    def __init__(
        self,
        batch_size: int = 32,
        evaluation_batch_size: int = 64,
        validation_fraction: float = 0.1,
        split_seed: int = 0,
        augmentation: Augmentation = "none",
        num_workers: int = 0,
        verify_images: bool = True,
    ) -> None:
        super().__init__()
        if batch_size < 1 or evaluation_batch_size < 1 or num_workers < 0:
            raise ConfigurationError("--data: batch sizes must be 1 or more, num_workers 0 or more")
        if not 0 <= validation_fraction < 1:
            raise ConfigurationError(f"--data.validation_fraction {validation_fraction}: must be in [0, 1)")
        self.batch_size = batch_size
        self.evaluation_batch_size = evaluation_batch_size
        self.validation_fraction = validation_fraction
        self.split_seed = split_seed
        self.augmentation: Augmentation = augmentation
        self.num_workers = num_workers
        self.verify_images = verify_images
        self._datasets: dict[tuple[str, Split], SiteDataset] = {}

    @abstractmethod
    def read(self) -> Sites:
        """What there is, checked as far as possible without decoding an image.

        Raises:
            DataError: naming the file or row, and the remedy.
        """

    def prepare(self, preprocessing: Preprocessing) -> None:
        """Read, check, cut validation, build transforms. A second call does nothing.

        Raises:
            DataError: anything that would fail in an epoch.
        """
        if self._datasets:
            return
        found = self.read()
        self.class_names, self.sites = tuple(found.class_names), tuple(found.splits)
        splits = {site: self._checked(site, parts) for site, parts in found.splits.items()}
        files = [
            path
            for parts in splits.values()
            for part in parts.values()
            if isinstance(part.source, FileSource)
            for path in part.source.paths
        ]
        if self.verify_images and files:
            verify(files)
        plain = evaluation_transform(preprocessing)
        augmented = training_transform(preprocessing, self.augmentation)
        for site, parts in splits.items():
            for split, part in self._with_validation(site, parts).items():
                self._datasets[site, split] = SiteDataset(part.source, part.labels, plain, augmented)

    def samples(self, site: str, split: Split) -> int:
        """Number of images."""
        return len(self._datasets[site, split])

    def class_counts(self, site: str, split: Split) -> list[int]:
        """Number of images a class."""
        labels = self._datasets[site, split].labels
        return [labels.count(index) for index in range(len(self.class_names))]

    def train_loader(self, sites: str | Sequence[str], seed: int) -> DataLoader[Any]:
        """Batches of images (B, 3, S, S) and class indices (B,), in an order and with augmentation set by `seed`.

        Several sites are mixed as if their images lay in one place.
        """
        parts = [self._datasets[site, "train"] for site in ([sites] if isinstance(sites, str) else sites)]
        dataset = parts[0] if len(parts) == 1 else PooledDataset(parts)
        return DataLoader(
            dataset,
            self.batch_size,
            sampler=SeededSampler(len(dataset), seed),
            num_workers=self.num_workers,
            generator=generator(seed),  # else the loader draws from the global generator
        )

    def unlabelled(self, site: str, split: Split, seed: int) -> Iterator[Tensor]:
        """Endless batches of images (B, 3, S, S) without labels, in an order set by `seed`; never of `test`.

        Raises:
            DataError: no such site, or no image in that split.
        """
        if (site, split) not in self._datasets or not len(self._datasets[site, split]):
            raise DataError(f'site "{site}" has no {split} image to be used without labels (sites: {self.sites})')
        dataset = self._datasets[site, split]

        def batches() -> Iterator[Tensor]:
            for cycle in itertools.count():
                order = SeededSampler(len(dataset), derive_seed(seed, "cycle", cycle))
                for images, _ in DataLoader(dataset, self.batch_size, sampler=order, generator=generator(seed)):
                    yield images

        return batches()

    def evaluation_loader(self, site: str, split: Split) -> DataLoader[Any]:
        """Batches in fixed order, never augmented."""
        return DataLoader(
            self._datasets[site, split],
            self.evaluation_batch_size,
            num_workers=self.num_workers,
            generator=generator(0),
        )

    def _checked(self, site: str, parts: dict[Split, LabelledImages]) -> dict[Split, LabelledImages]:
        needed: tuple[Split, ...] = ("train", "test")
        for split in needed:
            if split not in parts or not len(parts[split].labels):
                have = ", ".join(name for name in SPLITS if name in parts and len(parts[name].labels)) or "nothing"
                raise DataError(f'site "{site}" has no {split} image (it has: {have}); add some, or leave the site out')
        for split, part in parts.items():
            for index, label in enumerate(part.labels):
                if not 0 <= label < len(self.class_names):
                    raise DataError(
                        f'site "{site}", {split} image {index}: label {label} is out of range 0 to '
                        f"{len(self.class_names) - 1}"
                    )
        return parts

    def _with_validation(self, site: str, parts: dict[Split, LabelledImages]) -> dict[Split, LabelledImages]:
        if "validation" in parts:
            return parts
        train = parts["train"]
        groups = train.groups or [None] * len(train.labels)
        seed = derive_seed(self.split_seed, "validation", site)
        kept, cut = split_validation(train.labels, groups, self.validation_fraction, seed)

        def part(indices: Sequence[int]) -> LabelledImages:
            return LabelledImages(Subset(train.source, indices), [train.labels[index] for index in indices])

        return parts | {"train": part(kept), "validation": part(cut)}
