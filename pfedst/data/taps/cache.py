"""Cache the output of a frozen encoder for each image, shared by clients, methods and later runs."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import Dataset

from pfedst.data.datasets import Draw, SiteDataset
from pfedst.data.loaders import image_loader
from pfedst.data.tables import read_json
from pfedst.data.taps.layout import Layout
from pfedst.data.taps.store import TapStore
from pfedst.encoders import Encoder, Need, StoredTaps, TapDtype
from pfedst.errors import ConfigurationError, DataError

CacheKind = Literal["none", "pooled", "tokens", "taps", "auto"]

SERVES: Mapping[Need, tuple[Need, ...]] = {
    "pooled": ("pooled", "tokens", "taps"),
    "tokens": ("tokens",),
    "taps": ("taps",),
    "images": (),
}
"""Encoder output that an adapter needs -> kinds of store that hold it, the smallest first."""

IMAGES_A_STEP = 32
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


class Wanted(NamedTuple):
    """An image as it enters the encoder: its key, and where to load it."""

    key: str
    dataset: SiteDataset
    item: Draw | int


class CachedDataset(Dataset[tuple[StoredTaps, Tensor]]):
    """A split of a site, read from a store in batches.

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

    def __getitems__(self, items: Sequence[Draw | int]) -> tuple[StoredTaps, Tensor]:
        """Return a batch and its class indices (B,)."""
        positions = torch.tensor([item.position if isinstance(item, Draw) else item for item in items])
        views = self.rows.shape[1] - 1
        columns = [1 + item.seed % views if isinstance(item, Draw) and views else 0 for item in items]
        return self.store.read(self.rows[positions, torch.tensor(columns)], self.need), self.labels[positions]


class TapCache:
    """The cache of one run. It is completed before the first round.

    Attributes:
        missing: number and bytes of the images that `complete` found missing.

    Args:
        options: options of the cache.
        encoder: encoder whose output is cached.
        need: encoder output that the adapter needs.

    Raises:
        ConfigurationError: If the kind of cache does not serve the adapter.
    """

    def __init__(self, options: CacheOptions, encoder: Encoder, need: Need) -> None:
        if options.kind != "auto" and options.kind not in SERVES[need]:
            fitting = " or ".join((*SERVES[need], "auto", "none"))
            raise ConfigurationError(
                f"--data.cache {options.kind}: this adapter needs {need} of the encoder; use {fitting}"
            )
        self.options = options
        self.encoder = encoder
        self.need = need
        self.missing = (0, 0)

    @cached_property
    def identity(self) -> dict[str, dict[str, Any]]:
        """Encoder and preprocessing, which identify a store. Computed on first use, since it reads all weights."""
        # lists, as a manifest gives them
        preprocessing = dict(json.loads(json.dumps(asdict(self.encoder.preprocessing))))
        return {"encoder": self.encoder.identity, "preprocessing": preprocessing}

    def store(self, kind: Need, dtype: TapDtype | None = None) -> TapStore:
        """Return the store of a kind. Equal encoder, preprocessing, kind and dtype give the same folder."""
        corrected = self.identity["encoder"].get("token_grid") is not None
        layout = Layout.of(self.encoder.spec, kind, dtype or self.options.dtype, corrected)
        text = json.dumps([self.identity, vars(layout)], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        model = re.sub(r"[^\w.-]+", "_", str(self.identity["encoder"].get("model", "encoder")))
        name = f"{model}-{self.encoder.spec.image_size}px-{kind}-{layout.dtype}-{digest}"
        return TapStore(self.options.folder / name, layout, self.identity)

    def complete(
        self, wanted: Iterable[Wanted], device: torch.device, num_workers: int, fills: bool = True
    ) -> TapStore | None:
        """Return a store that holds every wanted image, or None if `auto` finds that it would not fit.

        Without `fills` nothing is computed, and None is also returned if an image is missing.

        Raises:
            ConfigurationError: If the store would exceed the byte limit or the free disk space.
            DataError: If an image cannot be read, the folder cannot be written, or values are not finite.
        """
        by_key = {item.key: item for item in wanted}
        if self.options.kind == "auto":
            kinds: tuple[Need, ...] = SERVES[self.need]
        else:
            kinds = tuple(kind for kind in SERVES[self.need] if kind == self.options.kind)
        for kind in kinds:
            store = self.store(kind)
            if all(key in store.row_of for key in by_key):
                return store
        store = self.store(kinds[0])
        if refusal := self._refusal(store, by_key):
            if self.options.kind == "auto":
                logging.getLogger("pfedst").warning("--data.cache auto caches nothing: %s", refusal)
                return None
            raise ConfigurationError(refusal)
        missing = sum(key not in store.row_of for key in by_key)
        self.missing = missing, missing * store.layout.row_bytes
        if not fills:
            return None
        self._fill(store, by_key, device, num_workers)
        return store

    def _refusal(self, store: TapStore, by_key: Mapping[str, Wanted]) -> str:
        """Return the reason why the missing images must not be written, or an empty text."""
        missing = sum(key not in store.row_of for key in by_key)
        needed = missing * store.layout.row_bytes
        total = store.bytes + needed
        smaller = "choose a smaller --data.cache_dtype or --model.encoder.token_grid, or --data.cache none"
        if total > self.options.max_bytes:
            return (
                f"the cache would hold {total / GIGABYTE:.2f} GB ({missing:,} more images of "
                f"{store.layout.row_bytes / 1024:.0f} KiB), and --data.cache_max_bytes allows "
                f"{self.options.max_bytes / GIGABYTE:.2f} GB: raise it to {total}, or {smaller}"
            )
        free = shutil.disk_usage(_existing(self.options.folder)).free
        if needed > free:
            return (
                f"{missing:,} images need {needed / GIGABYTE:.2f} GB in {self.options.folder}, where "
                f"{free / GIGABYTE:.2f} GB are free: free some space, choose another --data.cache_folder, or {smaller}"
            )
        return ""

    def _fill(self, store: TapStore, by_key: Mapping[str, Wanted], device: torch.device, num_workers: int) -> None:
        console = Console(stderr=True)
        try:
            with store.writing(wait_seconds=0):
                self._compute(store, by_key, device, num_workers, console)
                return
        except TimeoutError:
            console.print(f"another process fills {store.folder}; waiting for it", soft_wrap=True)
        with store.writing():
            self._compute(store, by_key, device, num_workers, console)

    def _compute(
        self, store: TapStore, by_key: Mapping[str, Wanted], device: torch.device, num_workers: int, console: Console
    ) -> None:
        if store.layout.dtype != "float32":
            self._convert([key for key in by_key if key not in store.row_of], store)
        missing = [item for key, item in by_key.items() if key not in store.row_of]
        if not missing:
            return
        answers: tuple[Need, ...] = ("pooled",) if store.layout.kind == "pooled" else ("pooled", store.layout.kind)
        self.encoder.to(device)
        needed = len(missing) * store.layout.row_bytes
        console.print(
            f"cache: {len(missing):,} images, {needed / GIGABYTE:.2f} GB of {store.layout.kind} in {store.folder}",
            highlight=False,
            soft_wrap=True,
        )
        # without its own generator a loader would draw from the global one
        loader = image_loader(_Images(missing), IMAGES_A_STEP, num_workers, generator=torch.Generator())
        columns = (TextColumn("cache"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"))
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task, done, started = progress.add_task("cache", total=len(missing)), 0, time.perf_counter()
            reported = 0.0
            for images in loader:
                keys = [item.key for item in missing[done : done + len(images)]]
                store.append(keys, store.layout.pack(self.encoder.encode(images.to(device), answers)))
                done += len(images)
                progress.update(task, completed=done)
                seconds = time.perf_counter() - started
                is_due = not reported or seconds - reported >= REPORT_SECONDS
                if is_due and done < len(missing) and not console.is_terminal:  # which has the bar
                    left = _duration(seconds / done * (len(missing) - done))
                    console.print(f"cache: {done:,} of {len(missing):,} images, about {left} left", highlight=False)
                    reported = seconds

    def _convert(self, keys: Sequence[str], store: TapStore) -> None:
        """Convert images from a float32 store, if it has them: another dtype needs no pass through the tower."""
        exact = self.store(store.layout.kind, "float32")
        known = [key for key in keys if key in exact.row_of]
        for start in range(0, len(known), IMAGES_A_STEP):
            batch = known[start : start + IMAGES_A_STEP]
            rows = torch.tensor([exact.row_of[key] for key in batch])
            needs: tuple[Need, ...] = ("pooled", store.layout.kind)
            answers = {need: exact.read(rows, need).decode() for need in needs}
            store.append(batch, store.layout.pack(answers))


class _Images(Dataset[Tensor]):
    """The images to compute, as they enter the encoder."""

    def __init__(self, wanted: Sequence[Wanted]) -> None:
        self.wanted = wanted

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, index: int) -> Tensor:
        return self.wanted[index].dataset[self.wanted[index].item][0]


# -- stores of a folder ------------------------------------------------------------------------------------------------


def stores_in(folder: Path) -> dict[str, TapStore]:
    """Return every store in a folder by name, for any encoder.

    Raises:
        DataError: If the manifest of a store cannot be read.
    """
    found = {}
    for place in sorted(folder.glob("*/manifest.json")):
        try:
            manifest = read_json(place)
            found[place.parent.name] = TapStore(place.parent, Layout(**manifest["layout"]), manifest["identity"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{place} is damaged ({error!r}); remove {place.parent}") from error
    return found


def remove_store(store: TapStore) -> None:
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


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
