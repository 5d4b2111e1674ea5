"""Cache decoded images, or the output of a frozen encoder for them, for all clients, methods and later runs."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import Dataset

from pfedst.data.cache.contents import Content, ImageContent, TapContent, Wanted, WholeImageContent
from pfedst.data.cache.layout import layout_of
from pfedst.data.cache.store import Store, TapStore, WholeImageStore, opened
from pfedst.data.loaders import image_loader
from pfedst.data.sampling import Draws
from pfedst.data.tables import read_json
from pfedst.encoders import Encoder, Need, StoredTaps, TapDtype
from pfedst.errors import ConfigurationError, DataError, counted
from pfedst.time_left import time_left

CacheKind = Literal["none", "images", "pooled", "tokens", "taps", "auto"]

SERVES: Mapping[Need, tuple[Need, ...]] = {
    "pooled": ("pooled", "tokens", "taps"),
    "tokens": ("tokens",),
    "taps": ("taps",),
    "images": (),
}
"""Encoder output that an adapter needs -> kinds of store that hold it, the smallest first."""

REPORT_SECONDS = 30.0
"""Time between two lines on the progress, in a log file."""
GIGABYTE = 1e9


@dataclass(frozen=True)
class CacheOptions:
    """Options of the cache in a configuration. FederatedDataModule documents their ranges and meaning."""

    kind: CacheKind
    dtype: TapDtype
    folder: Path
    max_bytes: int
    device_bytes: int = 0


class CachedDataset(Dataset[tuple[StoredTaps, Tensor]]):
    """A split of a site, read from a store of taps in batches.

    Args:
        store: store with the rows.
        need: encoder output to read.
        rows: (n, 1 + k) rows of each image: the image without augmentation, then its k augmented views.
        labels: class index of each image.
    """

    def __init__(self, store: TapStore, need: Need, rows: Tensor, labels: Sequence[int]) -> None:
        self.store = store
        self.need = need
        self.rows = rows
        self.labels = torch.tensor(list(labels))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, draws: Draws) -> tuple[StoredTaps, Tensor]:
        """Return a batch and its class indices (B,)."""
        positions, views = torch.tensor(draws.positions), self.rows.shape[1] - 1
        rows = self.rows[positions, 0]
        if views and draws.seed is not None:
            rows = self.rows[positions, torch.tensor([1 + seed % views for seed in draws.seeds])]
        return self.store.read(rows, self.need), self.labels[positions]


class Cache:
    """The cache of one run. It is completed before the first round.

    Attributes:
        missing: kind, number and bytes of the rows that `complete` found missing.

    Args:
        options: options of the cache.
        encoder: encoder whose input or output is cached.
        need: encoder output that the adapter needs.
        redraws: the augmentation of training images, in words, if each epoch draws new images; otherwise empty.

    Raises:
        ConfigurationError: If the kind of cache does not serve the adapter or the augmentation.
    """

    def __init__(self, options: CacheOptions, encoder: Encoder, need: Need, redraws: str = "") -> None:
        self.options = options
        self.missing: tuple[Need, int, int] = ("images", 0, 0)
        served = [kind for kind in SERVES[need] if kind in encoder.offers]
        if options.kind not in ("auto", "images", *served):
            fitting = " or ".join((*served, "images", "auto", "none"))
            reason = f", and {encoder.limits}" if encoder.limits and options.kind in SERVES[need] else ""
            raise ConfigurationError(
                f"--data.cache {options.kind}: this adapter needs {need} of the encoder{reason}; use {fitting}"
            )
        if redraws and options.kind not in ("auto", "images"):
            raise ConfigurationError(
                f"--data.cache {options.kind} with --data.augmentation {redraws}: each epoch draws new images, so "
                f"cached rows would never be used; set --data.views 4 (fixed views per image), --data.cache images, "
                f"--data.augmentation none, or --data.cache none"
            )
        self._images = [ImageContent(options.folder, encoder.preprocessing)]
        self._taps = [
            TapContent(options.folder, encoder, kind, options.dtype)
            for kind in served
            if options.kind in ("auto", kind) and not redraws
        ]

    def complete(
        self,
        wanted: Iterable[Wanted],
        device: torch.device,
        num_workers: int,
        fills: bool = True,
        whole: Sequence[Wanted] = (),
    ) -> tuple[Store | None, WholeImageStore | None]:
        """Return a store that holds every wanted image, and one of whole images.

        The first is None if `auto` finds that it would not fit, the second also beside a store of taps. Without `fills`
        nothing is computed, and None also stands for a store that an image is missing from.

        Args:
            wanted: images that are read as they are, or as fixed views.
            device: where the encoder runs.
            num_workers: processes that decode images.
            fills: compute what is missing.
            whole: images from which random crops are cut.

        Raises:
            ConfigurationError: If a store would exceed the byte limit or the free disk space.
            DataError: If an image cannot be read, the folder cannot be written, or values are not finite.
        """
        found = list(wanted)
        content = self._chosen(found)
        if content is None:
            return None, None
        is_complete = self._complete(content, found, device, num_workers, fills)
        store = content.store if is_complete else None
        if content.kind != "images" or not whole:
            return store, None
        crops = WholeImageContent(self.options.folder)
        if _missing(crops, whole) and (refusal := self._refusal(crops, whole)):
            if self.options.kind != "auto":
                raise ConfigurationError(refusal)
            _log("--data.cache auto: each epoch decodes the training images anew, as %s", refusal)
            return store, None
        is_complete = self._complete(crops, whole, device, num_workers, fills)
        return store, crops.store if is_complete else None

    def _chosen(self, wanted: Sequence[Wanted]) -> Content | None:
        """Return what is cached: the first content that is complete, or else the first that fits."""
        contents: Sequence[Content] = self._images if self.options.kind == "images" else self._taps or self._images
        for content in contents:
            if not _missing(content, wanted):
                return content
        content = contents[0]
        refusal = self._refusal(content, wanted)
        if refusal and self.options.kind == "auto" and self._taps:
            (content,) = self._images
            taps, refusal = refusal, self._refusal(content, wanted)
            if not refusal:
                _log("--data.cache auto caches decoded images, no taps: %s", taps)
        if refusal and self.options.kind == "auto":
            _log("--data.cache auto caches nothing: %s", refusal)
            return None
        if refusal:
            raise ConfigurationError(refusal)
        return content

    def _complete(
        self, content: Content, wanted: Sequence[Wanted], device: torch.device, num_workers: int, fills: bool
    ) -> bool:
        """Compute the missing rows of a store if it `fills`; return True if no image is missing now."""
        missing = _missing(content, wanted)
        if missing:
            _, images, needed = self.missing
            self.missing = content.kind, images + len(missing), needed + content.bytes_of(missing)
        if missing and fills:
            self._fill(content, missing, device, num_workers)
        return fills or not missing

    def _refusal(self, content: Content, wanted: Sequence[Wanted]) -> str:
        """Return the reason why the missing images must not be written, or an empty text."""
        missing = _missing(content, wanted)
        needed, count = content.bytes_of(missing), len(missing)
        total = content.store.bytes + needed
        smaller = "choose --data.cache none"
        if content.kind != "images":
            smaller = "choose a smaller --data.cache_dtype or --model.encoder.token_grid, or --data.cache none"
        if total > self.options.max_bytes:
            return (
                f"the cache would hold {total / GIGABYTE:.2f} GB ({count:,} more images of "
                f"{needed / count / 1024 if count else 0:.0f} KiB), and --data.cache_max_bytes allows "
                f"{self.options.max_bytes / GIGABYTE:.2f} GB: raise it to {total}, or {smaller}"
            )
        free = shutil.disk_usage(_existing(self.options.folder)).free
        if needed > free:
            return (
                f"{counted(count, 'image')} to cache: {needed / GIGABYTE:.2f} GB in {self.options.folder}, where "
                f"{free / GIGABYTE:.2f} GB are free: free some space, choose another --data.cache_folder, or {smaller}"
            )
        return ""

    def _fill(self, content: Content, wanted: Sequence[Wanted], device: torch.device, num_workers: int) -> None:
        console = Console(stderr=True)
        try:
            with content.store.writing(wait_seconds=0):
                _compute(content, wanted, device, num_workers, console)
                return
        except TimeoutError:
            console.print(f"another process fills {content.store.folder}; waiting for it", soft_wrap=True)
        with content.store.writing():
            _compute(content, wanted, device, num_workers, console)


def _log(text: str, reason: str) -> None:
    logging.getLogger("pfedst").warning(text, reason)


def _missing(content: Content, wanted: Iterable[Wanted]) -> list[Wanted]:
    """Return the wanted images without a row, each once."""
    row_of = content.store.row_of
    by_key = {item.key: item for item in wanted if content.holds(item) and item.key not in row_of}
    return list(by_key.values())


def _compute(
    content: Content, wanted: Sequence[Wanted], device: torch.device, num_workers: int, console: Console
) -> None:
    store = content.store
    content.convert([item.key for item in _missing(content, wanted)])
    missing = _missing(content, wanted)
    if not missing:
        return
    needed = content.bytes_of(missing)
    console.print(
        f"cache: {counted(len(missing), 'image')}, {needed / GIGABYTE:.2f} GB of {content.kind} in {store.folder}",
        highlight=False,
        soft_wrap=True,
    )
    # without its own generator a loader would draw from the global one
    loader = image_loader(
        _Images(content, missing),
        num_workers,
        batch_size=content.images_a_step,
        collate_fn=list,
        generator=torch.Generator(),
    )
    columns = (TextColumn("cache"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task, done, started = progress.add_task("cache", total=len(missing)), 0, time.perf_counter()
        reported = 0.0
        for images in loader:
            keys = [item.key for item in missing[done : done + len(images)]]
            content.append(keys, images, device)
            done += len(images)
            progress.update(task, completed=done)
            seconds = time.perf_counter() - started
            is_due = not reported or seconds - reported >= REPORT_SECONDS
            if is_due and done < len(missing) and not console.is_terminal:  # which has the bar
                left = time_left(seconds / done * (len(missing) - done))
                console.print(f"cache: {done:,} of {len(missing):,} images, {left}", highlight=False)
                reported = seconds


class _Images(Dataset[Tensor]):
    """The images from which rows are made."""

    def __init__(self, content: Content, wanted: Sequence[Wanted]) -> None:
        self.content = content
        self.wanted = wanted

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, index: int) -> Tensor:
        return self.content.load(self.wanted[index])


# -- stores of a folder ------------------------------------------------------------------------------------------------


def stores_in(folder: Path) -> dict[str, Store]:
    """Return every store in a folder by name.

    Raises:
        DataError: If the manifest of a store cannot be read.
    """
    found = {}
    for place in sorted(folder.glob("*/manifest.json")):
        try:
            manifest = read_json(place)
            found[place.parent.name] = opened(place.parent, layout_of(manifest["layout"]), manifest["identity"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{place} is damaged ({error!r}); remove {place.parent}") from error
    return found


def remove_store(store: Store) -> None:
    """Remove a store that no process is writing.

    Raises:
        TimeoutError: If a process is writing the store.
    """
    with store.writing(wait_seconds=0):
        (store.folder / "manifest.json").unlink()  # first: without it the rest is not a store if this is interrupted
        for path in (*store.folder.glob("*.bin"), store.folder / "index.txt"):
            path.unlink()
    shutil.rmtree(store.folder)


def _existing(folder: Path) -> Path:
    return folder if folder.exists() or folder == folder.parent else _existing(folder.parent)
