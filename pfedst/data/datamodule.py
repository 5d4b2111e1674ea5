"""FederatedDataModule: the images of several sites, checked before the first epoch."""

from __future__ import annotations

import itertools
import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torchvision.transforms import v2

from pfedst.data.audit import AuditReport, audit, fingerprint, image_digests, scan
from pfedst.data.augmentation import Augmentation, Preset, as_one, augmentation_key, augmentation_text
from pfedst.data.cache.cache import Cache, CachedDataset, CacheKind, CacheOptions
from pfedst.data.cache.contents import Wanted
from pfedst.data.cache.place import default_folder
from pfedst.data.cache.store import ImageStore, Store, TapStore
from pfedst.data.datasets import SiteDataset, StoredImages, StoredSquares
from pfedst.data.grey_scale import check_range
from pfedst.data.left_out import left_out_line
from pfedst.data.loaders import image_loader
from pfedst.data.sampling import Draws, InOrder, SamplerKind, SeededSampler, shown_counts
from pfedst.data.sites import NEEDED, Sites, Split
from pfedst.data.sources import FileSource, content_digest
from pfedst.data.subgroups import MINIMUM, Subgroups
from pfedst.data.transforms import ImageTransform
from pfedst.encoders import Encoder, Inputs, Need, Preprocessing, TapDtype
from pfedst.errors import ConfigurationError, DataError, listed
from pfedst.names import plain_names
from pfedst.seeds import derive_seed, generator

AuditLevel = Literal["off", "warn", "strict"]
BATCH_BYTES = 256 * 2**20
CACHE_BYTES = 20_000_000_000
"""Maximum bytes of an evaluation step and of a cache, if a configuration gives none."""
IMAGES_A_STEP = 64
"""Images of an evaluation step where nothing is known of the layers that they pass."""


class FederatedDataModule(LightningDataModule):
    """Base of every multi-site data set; a subclass implements `read`.

    Attributes:
        label: a description of the data, for the protocol.
        class_names: names of the K classes, after `prepare`.
        sites: names of the sites, after `prepare`.
        cache: options of the cache.
        needed_splits: the splits of which every site must have images; all others may be empty.
        fingerprint: hash of sites, splits, classes and images, after `prepare`. Images are hashed by content if they
            were verified, else by name.
        report: findings of the audit, after `prepare`; None with audit `off`.
        ordinal: as given.
        store: the store in use, after `complete_cache`; None without.
        missing: kind, number and bytes of the rows that `complete_cache` found missing in the cache.

    Args:
        batch_size: images per training step, >= 1; the last batch of an epoch may be smaller and is not dropped.
        evaluation_batch_size: images per evaluation step, >= 1. Default: as many as `evaluation_batch_bytes` allows,
            or 64 for an adapter that needs images, because the size of its layers is not known.
        evaluation_batch_bytes: maximum bytes of one evaluation step, >= 1: the pixels of its images, and the
            activations that the adapter needs or the widest layer of the encoder, in float32. The number of images
            depends only on shapes, not on the cache.
        validation_fraction: share of train that becomes validation, in [0, 1), at sites without a validation split.
        split_seed: seed of the validation split and of folds; it does not depend on the run's seed, so that all runs
            share their splits.
        folds: number of folds, 2 or more, over which all images of each site are distributed, whatever their split: by
            groups, stratified by class, with `split_seed`. Default: the splits of the data set.
        fold: the fold that is test, from 0 to `folds` - 1; the others are train, from which validation is split.
        augmentation: augmentation of training images: `none`, `flips`, `crops` (random resized crop and flips), or a
            transform of `torchvision.transforms.v2` by class path and options, or a list of them. It receives the
            square image of the encoder's size, uint8, before normalisation, and must keep its shape.
        views: number of augmented views of each training image, fixed over epochs and runs, 1 or more. With 0 every
            epoch draws new views, which cannot be cached.
        sampler: order of the training images of an epoch: `shuffle` uses every image once; `class_balanced` uses the
            same number of images, equally many of each class that the site has, and repeats images of rare classes.
        num_workers: number of processes that load images; results do not depend on it.
        verify_images: decode every image before training, so that a damaged image is reported at once. Files that
            have not changed are not decoded again (the result is kept in the cache's folder).
        audit: search for leaks between splits, absent classes, duplicates and similar errors before training: `warn`
            prints a headline, `strict` refuses to train on an error, `off` skips the audit. Duplicates are searched for
            only with verify_images.
        outside_files: allow images outside the folders that the data set names, to which a path with `..`, an absolute
            path or a link leads. Otherwise such an image is an error.
        pixel_range: values of grey images that become black and white, such as [0, 4095] for 12 bits kept in 16, or
            [-160, 240] for Hounsfield units. It applies to grey images of more than 8 bits and to grey DICOM files.
            Default: what each file declares (its bits, its DICOM window), otherwise its smallest and its largest
            value, with a warning.
        ordinal: true if the classes are grades in their order; this adds the quadratic weighted kappa.
        cache: what to cache on disk. `images`: decoded images, cropped to the square of the encoder, so that each file
            is read once. `pooled`, `tokens` or `taps`: activations of the encoder, so that each image passes the
            encoder once. `auto`: what the adapter needs, if it fits the budget, and `images` for an adapter that needs
            images, or if each epoch draws new augmented images. `none`: nothing.
        cache_dtype: dtype of cached values. float32 gives the bits of a run without cache; bfloat16 and float16 take
            half the bytes, int8 a quarter.
        cache_folder: folder of the caches; default: PFEDST_CACHE of the environment, or `pfedst` in the user's cache.
        cache_max_bytes: a cache that would grow larger is refused before it is built, >= 0.
        cache_device_bytes: copy the rows of the cache that this run uses to the memory of the device once (on a CPU:
            from the mapped files to memory), if they take at most this many bytes; 0: read them from the mapped files.
            Each process of `--coordinator.transport processes` has its own copy on a GPU.
        only_sites: use only these sites: images of the others need not be on disk. Validation and drawn test images of
            a site are the same as with all sites. Default: all sites.
        subgroups: columns of the table of the images, such as `[sex, device]`, by whose values results on test are
            reported too. Metrics and number of images of each subgroup leave the site then, once, after the last round.
            Default: none.
        subgroup_bands: edges of the bands of columns of numbers: `{age: [40, 60]}` makes below 40, 40 to below 60, and
            60 or above.
        subgroup_minimum: a subgroup of fewer images, or of fewer patients or lesions where they are known, is withheld:
            nothing of it leaves the site but its name. Also withheld is the next larger one where it would give the
            smaller one away.

    Raises:
        ConfigurationError: an option is out of range.
    """

    label: str = ""
    class_names: tuple[str, ...]
    sites: tuple[str, ...]
    fingerprint: str

    def __init__(
        self,
        batch_size: int = 32,
        evaluation_batch_size: int | None = None,
        evaluation_batch_bytes: int = BATCH_BYTES,
        validation_fraction: float = 0.1,
        split_seed: int = 0,
        folds: int | None = None,
        fold: int | None = None,
        augmentation: Augmentation = "none",
        views: int = 0,
        num_workers: int = 0,
        verify_images: bool = True,
        audit: AuditLevel = "warn",
        outside_files: bool = False,
        pixel_range: tuple[float, float] | None = None,
        ordinal: bool = False,
        cache: CacheKind = "none",
        cache_dtype: TapDtype = "float32",
        cache_folder: Path | str | None = None,
        cache_max_bytes: int = CACHE_BYTES,
        cache_device_bytes: int = 0,
        sampler: SamplerKind = "shuffle",
        only_sites: Sequence[str] | None = None,
        subgroups: Sequence[str] = (),
        subgroup_bands: dict[str, list[float]] | None = None,
        subgroup_minimum: int = MINIMUM,
    ) -> None:
        super().__init__()
        if min(batch_size, evaluation_batch_size or 1, evaluation_batch_bytes) < 1 or evaluation_batch_size == 0:
            raise ConfigurationError("--data: batch sizes and evaluation_batch_bytes must be 1 or more")
        if min(num_workers, cache_max_bytes, cache_device_bytes) < 0:
            raise ConfigurationError("--data: num_workers, cache_max_bytes and cache_device_bytes must be 0 or more")
        of_a_cache = {
            "cache_device_bytes": cache_device_bytes != 0,
            "cache_max_bytes": cache_max_bytes != CACHE_BYTES,
            "cache_dtype": cache_dtype != "float32",
        }
        for name, given in of_a_cache.items():
            if given and cache == "none":
                raise ConfigurationError(
                    f"--data.{name} has no effect with --data.cache none; leave it out, or choose a cache"
                )
        if evaluation_batch_size is not None and evaluation_batch_bytes != BATCH_BYTES:
            raise ConfigurationError(
                "--data.evaluation_batch_bytes has no effect with --data.evaluation_batch_size; leave out one of them"
            )
        if views < 0 or (views and augmentation == "none"):
            raise ConfigurationError(
                f"--data.views {views}: must be 0 or more, and 0 without --data.augmentation: there is one view then"
            )
        check_range("--data.pixel_range", pixel_range)
        if not 0 <= validation_fraction < 1:
            raise ConfigurationError(f"--data.validation_fraction {validation_fraction}: must be in [0, 1)")
        _check_folds(folds, fold)
        self.batch_size = batch_size
        self.evaluation_batch_size = evaluation_batch_size or IMAGES_A_STEP
        self._fixed_evaluation_batch = evaluation_batch_size is not None
        self.evaluation_batch_bytes = evaluation_batch_bytes
        self.validation_fraction = validation_fraction
        self.split_seed = split_seed
        self.folds = folds
        self.fold = fold
        self.augmentation: Preset | v2.Transform = as_one(augmentation)
        self.sampler: SamplerKind = sampler
        self.num_workers = num_workers
        self.verify_images = verify_images
        self.audit: AuditLevel = audit
        self.report: AuditReport | None = None
        self.outside_files = outside_files
        self.pixel_range = None if pixel_range is None else (pixel_range[0], pixel_range[1])
        self.ordinal = ordinal
        self.views = views
        folder = Path(cache_folder or default_folder())
        self.cache = CacheOptions(cache, cache_dtype, folder, cache_max_bytes, cache_device_bytes)
        self._device = torch.device("cpu")
        self._preprocessing: Preprocessing | None = None
        self._datasets: dict[tuple[str, Split], SiteDataset] = {}
        self._identities: dict[tuple[str, Split], tuple[Tensor, Tensor]] = {}
        self._class_counts: dict[tuple[str, Split], list[int]] = {}
        self.store: Store | None = None
        self.missing: tuple[Need, int, int] = ("images", 0, 0)
        self._rows: dict[tuple[str, Split], Tensor] = {}
        self._need: Need = "images"
        self._trained_classes: tuple[str, ...] | None = None
        self._needs_all_classes = False
        self._chosen_sites = None if only_sites is None else tuple(plain_names(only_sites))
        self.subgroups = Subgroups(subgroups, subgroup_bands or {}, subgroup_minimum)
        self._subgroup_of_file: Mapping[str, Mapping[Path, str]] = {}
        self.needed_splits: tuple[Split, ...] = NEEDED

    def __str__(self) -> str:  # Lightning's asks for loaders that there are none of
        return f"{type(self).__name__}: {self.described}"

    def use_classes(self, names: Sequence[str], all_of_them: bool = False) -> None:
        """Give images the class indices of a trained model, whatever the order in which these data name the classes.

        `prepare` then refuses data with a class that the model does not have.

        Args:
            names: the classes of the model, in the order of its outputs.
            all_of_them: `prepare` also refuses data that do not name all of these classes.

        Raises:
            ConfigurationError: the data are prepared with other classes.
        """
        if self._datasets and tuple(plain_names(names)) != self.class_names:
            raise ConfigurationError(
                f"these data are prepared with the classes {listed(list(self.class_names))}, and the model has "
                f"{listed(list(names))}: make another data module"
            )
        self._trained_classes, self._needs_all_classes = tuple(plain_names(names)), all_of_them

    def use_sites(self, names: Sequence[str]) -> None:
        """Use these sites alone, as `only_sites`.

        Raises:
            ConfigurationError: the data are prepared with other sites.
        """
        chosen = tuple(plain_names(names))
        if self._datasets and set(chosen) != set(self.sites):
            raise ConfigurationError(f"these data are prepared with {listed(list(self.sites))}: make a new data module")
        self._chosen_sites = chosen

    def need_only(self, *splits: Split) -> None:
        """Require images of these splits alone: a site that is only evaluated needs no image to train on."""
        self.needed_splits = splits

    @abstractmethod
    def read(self) -> Sites:
        """Read the sites, checked as far as possible without decoding an image.

        Raises:
            DataError: naming the file or row, and the remedy.
        """

    @property
    def fold_options(self) -> dict[str, int]:
        """`folds`, `fold` and `split_seed`; empty without folds."""
        if self.folds is None or self.fold is None:
            return {}
        return {"folds": self.folds, "fold": self.fold, "split_seed": self.split_seed}

    @property
    def described(self) -> str:
        """`label`, with the fold that is test."""
        return self.label if self.folds is None else f"{self.label}; fold {self.fold} of {self.folds} is test"

    def prepare(self, preprocessing: Preprocessing) -> None:
        """Read, check, cut validation, build transforms. A second call does nothing.

        Raises:
            DataError: anything that would fail in an epoch.
            ConfigurationError: the data are prepared for an encoder with another preprocessing.
        """
        if self._datasets and preprocessing != self._preprocessing:
            raise ConfigurationError(
                f"these data are prepared for {self._preprocessing}, not for {preprocessing}: use one data module "
                f"per encoder"
            )
        if self._datasets:
            return
        self._preprocessing = preprocessing
        found = self.found()
        for place, counts in found.left_out.items():
            logging.getLogger("pfedst").warning("%s", left_out_line(place, counts))
        # an audit is about what is trained on
        audits = self.audit != "off" and all(len(parts["train"].labels) for parts in found.splits.values())
        seen = scan(found, audits, self.cache.folder) if self.verify_images else None
        if seen is not None:
            seen.refuse_unreadable()
            if self.pixel_range is not None and not any(of.header and of.header.deep for of in seen.facts.values()):
                raise ConfigurationError(
                    f"--data.pixel_range {list(self.pixel_range)} has no effect: every image has 8 bits, which are not "
                    f"changed; leave the option out"
                )
        if audits:
            self.report = audit(found, self.described, seen)
            if self.audit == "strict":
                self.report.refuse_errors()
        self.class_names, self.sites = tuple(found.class_names), tuple(found.splits)
        self.fingerprint = fingerprint(found, seen)
        self._subgroup_of_file = found.subgroups
        plain, augmented = ImageTransform(preprocessing), ImageTransform(preprocessing, self.augmentation)
        for site, split, part in found.parts():
            self._identities[site, split] = _hashes(image_digests(site, split, part, seen), part.groups)
            self._class_counts[site, split] = [part.labels.count(index) for index in range(len(self.class_names))]
            train = split == "train"
            self._datasets[site, split] = SiteDataset(
                part.source, part.labels, augmented if train else plain, self.views if train else 0
            )

    def found(self, files: bool = True) -> Sites:
        """Return the sites that `read` finds, checked, with test as one fold if wanted and validation cut from train.

        Args:
            files: check that every file exists and lies where it may lie; without, only tables are read.

        Raises:
            DataError: naming the site, row or file.
        """
        found = self.read().with_pixel_range(self.pixel_range)
        self.subgroups.check_read(found.subgroups, type(self).__name__)
        found.check_labels()
        if self._trained_classes is not None:
            missing = [name for name in self._trained_classes if name not in plain_names(found.class_names)]
            if missing and self._needs_all_classes:
                raise DataError(
                    f"the model has classes that these data do not name: {listed(missing)}. The data name "
                    f"{listed(list(found.class_names))}: name the classes as the model does, with --data.class_names"
                )
            found = found.with_classes(self._trained_classes)  # before test and validation are cut by labels
        if files:
            used = found if self._chosen_sites is None else found.of_sites(self._chosen_sites)
            used.check_files(self.outside_files)
            found = replace(found, splits=found.splits | used.with_patients().splits)
        if self.folds is None or self.fold is None:
            found = found.with_test(self.split_seed)
        else:
            for site, rare in found.rare_classes(self.folds).items():
                logging.getLogger("pfedst").warning(
                    "%s: fewer patients, lesions or images than %d folds, so some folds have none in test: %s",
                    site, self.folds, listed(rare),
                )  # fmt: skip
            found = found.with_fold(self.folds, self.fold, self.split_seed)
        if self._chosen_sites is not None:  # after the draws: a group may lie at several sites
            found = found.with_validation(self.validation_fraction, self.split_seed).of_sites(self._chosen_sites)
        found.check_splits(self.needed_splits)
        return found.with_validation(self.validation_fraction, self.split_seed).with_all_splits()

    def complete_cache(self, encoder: Encoder, need: Need, device: torch.device, fills: bool = True) -> None:
        """Complete the cache; loaders then read from it.

        Args:
            encoder: the encoder whose preprocessing `prepare` was given.
            need: what the adapter needs of the encoder.
            device: where the encoder runs, and the adapter trains.
            fills: compute missing rows; without, loaders yield images of files unless the cache is complete.

        Raises:
            ConfigurationError: the cache cannot serve this adapter, or would be too large.
            DataError: an image or the cache's folder cannot be used.
        """
        self.store, self._need, self.missing, self._device = None, need, ("images", 0, 0), device
        if not self._fixed_evaluation_batch:
            fitting = (
                IMAGES_A_STEP if need == "images" else self.evaluation_batch_bytes // encoder.spec.step_bytes(need)
            )
            self.evaluation_batch_size = max(1, fitting)
        for dataset in self._datasets.values():
            dataset.stored = dataset.whole = None
        if self.cache.kind == "none":
            return
        redraws = self.augmentation != "none" and not self.views
        cache = Cache(self.cache, encoder, need, self.augmentation_text if redraws else "")
        keys = {place: self._keys(*place) for place in self._datasets}
        wanted = [item for of_place in keys.values() for of_image in of_place for item in of_image]
        cut = {place: [of_image[0] for of_image in of_place] for place, of_place in keys.items() if self._cuts(*place)}
        whole = [item for of_place in cut.values() for item in of_place]
        self.store, images = cache.complete(wanted, device, self.num_workers, fills, whole)
        self.missing = cache.missing
        if self.store is None:
            return
        row_of, held = self.store.row_of, 1 if isinstance(self.store, ImageStore) else None
        self._rows = {
            place: torch.tensor(
                [[row_of[item.key] for item in of_image[:held]] for of_image in of_place], dtype=torch.long
            )
            for place, of_place in keys.items()
        }
        self._hold_rows(self.store)
        if isinstance(self.store, ImageStore):
            for place, rows in self._rows.items():
                self._datasets[place].stored = StoredSquares(self.store, rows.flatten())
        if images is not None:
            for place, items in cut.items():
                self._datasets[place].whole = StoredImages(images, [images.row_of[item.key] for item in items])

    def _cuts(self, site: str, split: Split) -> bool:
        return self._datasets[site, split].transform.cuts_at_random

    def _hold_rows(self, store: Store) -> None:
        """Copy the rows of this run to the device, if they fit."""
        rows = torch.cat([rows.flatten() for rows in self._rows.values()])
        rows = torch.tensor(sorted(set(rows.tolist())))
        if 0 < len(rows) * store.layout.row_bytes <= self.cache.device_bytes:
            self.store = store.held(rows, self._device)
            self._rows = {place: torch.searchsorted(rows, of_place) for place, of_place in self._rows.items()}
        elif self.cache.device_bytes:
            logging.getLogger("pfedst").warning(
                "--data.cache_device_bytes %d: the cached images of this run take %d bytes, and are read from files",
                self.cache.device_bytes, len(rows) * store.layout.row_bytes,
            )  # fmt: skip

    def _keys(self, site: str, split: Split) -> list[list[Wanted]]:
        """Return the cache keys of each image: of the plain image, and for training of the augmented views."""
        dataset, augmentation = self._datasets[site, split], augmentation_key(self.augmentation)
        found = []
        for index in range(len(dataset)):
            digest = dataset.source.digest(index)
            names = ["plain", *(f"{augmentation} {view}" for view in range(dataset.views))]
            keys = [content_digest(f"{digest} {name}".encode()) for name in names]
            found.append([Wanted(key, dataset, index, i - 1 if i else None) for i, key in enumerate(keys)])
        return found

    def _dataset(self, sites: Sequence[str], split: Split, need: Need | None = None) -> SiteDataset | CachedDataset:
        parts = [self._datasets[site, split] for site in sites]
        dataset = parts[0] if len(parts) == 1 else SiteDataset.joined(parts)
        if not isinstance(self.store, TapStore):
            return dataset
        rows = torch.cat([self._rows[site, split] for site in sites])
        return CachedDataset(self.store, need or self._need, rows, dataset.labels)

    def _loader(self, dataset: SiteDataset | CachedDataset, sampler: Sampler[Draws], seed: int) -> DataLoader[Any]:
        """Return a loader whose batches the data set makes whole."""
        # there is nothing for other processes to do where a batch is copied from a store
        reads = isinstance(dataset, CachedDataset) or (dataset.stored is not None and not dataset.transform.by_image)
        workers = 0 if reads else self.num_workers
        return image_loader(
            dataset,
            workers,
            batch_size=None,
            sampler=sampler,
            collate_fn=_unchanged,
            pin_memory=self._device.type == "cuda" and not self.holds_rows,
            # without its own generator the loader would draw from the global one
            generator=generator(seed),
        )

    @property
    def holds_rows(self) -> bool:
        """True if the cached rows are in the memory of the device."""
        return self.store is not None and self.store.is_held

    @property
    def augmentation_text(self) -> str:
        """The augmentation in words."""
        return augmentation_text(self.augmentation)

    def samples(self, site: str, split: Split) -> int:
        """Return the number of images."""
        return len(self._datasets[site, split])

    def identities(self, site: str, split: Split) -> tuple[Tensor, Tensor]:
        """Return hashes (N, 16) uint8 of the images of a split, and of their patients or lesions.

        An image is hashed by its content, or by its name if images are not verified. The hash of a group that is not
        known is zero.
        """
        return self._identities[site, split]

    def subgroups_of(self, site: str, split: Split) -> dict[str, tuple[tuple[str, ...], Tensor]]:
        """Return by column the names of all subgroups, and the index (N,) of the subgroup of each image of a split."""
        paths = FileSource.paths_of(self._datasets[site, split].source)
        found = {}
        for column, of_file in self._subgroup_of_file.items():
            names = self.subgroups.names(column, of_file.values())
            found[column] = names, torch.tensor([names.index(of_file[path]) for path in paths], dtype=torch.long)
        return found

    def class_counts(self, site: str, split: Split) -> list[int]:
        """Return the number of images by class."""
        return list(self._class_counts[site, split])

    def sampled_counts(self, sites: Sequence[str]) -> list[int]:
        """Return the number of training images by class that the sampler shows in an epoch of one or several sites."""
        of_sites = [self.class_counts(site, "train") for site in sites]
        return shown_counts([sum(counts) for counts in zip(*of_sites, strict=True)], self.sampler)

    def train_loader(self, sites: str | Sequence[str], seed: int) -> DataLoader[Any]:
        """Return batches of images (B, 3, S, S) and class indices (B,), with order and augmentation set by `seed`.

        Several sites are mixed as if their images lay in one place.
        """
        dataset = self._dataset([sites] if isinstance(sites, str) else sites, "train")
        classes = [int(label) for label in dataset.labels] if self.sampler == "class_balanced" else None
        return self._loader(dataset, SeededSampler(len(dataset), self.batch_size, seed, classes), seed)

    def unlabelled(self, site: str, split: Split, seed: int) -> Iterator[Inputs]:
        """Return endless batches of images (B, 3, S, S), or cached taps, without labels; never of `test`.

        Their order is set by `seed`.

        Raises:
            DataError: no such site, or no image in that split.
        """
        if (site, split) not in self._datasets or not len(self._datasets[site, split]):
            raise DataError(f'site "{site}" has no {split} image to be used without labels (sites: {self.sites})')
        dataset = self._dataset([site], split)

        def batches() -> Iterator[Inputs]:
            for cycle in itertools.count():
                order = SeededSampler(len(dataset), self.batch_size, derive_seed(seed, "cycle", cycle))
                for inputs, _ in self._loader(dataset, order, seed):
                    yield inputs

        return batches()

    def evaluation_loader(self, site: str, split: Split, need: Need | None = None) -> DataLoader[Any]:
        """Return batches in a fixed order, never augmented; from a cache what the adapter needs, or else `need`."""
        dataset = self._dataset([site], split, need)
        return self._loader(dataset, InOrder(len(dataset), self.evaluation_batch_size), 0)


def _check_folds(folds: int | None, fold: int | None) -> None:
    if folds is None and fold is None:
        return
    if folds is None:
        raise ConfigurationError(f"--data.fold {fold}: give --data.folds too, the number of folds")
    if folds < 2:
        raise ConfigurationError(f"--data.folds {folds}: must be 2 or more; leave it out for the splits of the data")
    if fold is None:
        raise ConfigurationError(
            f"--data.folds {folds}: give --data.fold too, the fold that is test (0 to {folds - 1})"
        )
    if not 0 <= fold < folds:
        raise ConfigurationError(f"--data.fold {fold}: must be from 0 to {folds - 1}, of --data.folds {folds}")


T = TypeVar("T")


def _unchanged(batch: T) -> T:
    return batch


def _hashes(digests: Sequence[str], groups: Sequence[str | None]) -> tuple[Tensor, Tensor]:
    """Return the hashes (N, 16) of images, and of their patients or lesions: zeros where none is known."""
    of_groups = [content_digest(group.encode()) if group is not None else "00" * 16 for group in groups]
    return _as_bytes(digests), _as_bytes(of_groups)


def _as_bytes(digests: Sequence[str]) -> Tensor:
    """Hexadecimal digests -> (N, 16) uint8."""
    return torch.tensor(list(bytes.fromhex("".join(digests))), dtype=torch.uint8).reshape(-1, 16)
