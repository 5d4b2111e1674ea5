"""An epoch of methods that need images over the four FedISIC centres: from the store of decoded images, and from files.

    python benchmarks/images.py run --root FOLDER --weights IMAGE_TOWER.safetensors [--batches 4] [--repeats 3]
    python benchmarks/images.py table

Rows: FedAvg of a small CNN on pixels, and FedLoRA (LoRA inside ViT-B/16), at 64 px, without augmentation, with flips
and with crops. Both sides fit the same batches in turns, so that other work on the machine slows both. The resident
memory of the process is given without mapped files (RssAnon): the system takes their pages back when it needs them.
Writes benchmarks/results/images.json.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from command_line import run_and_table, save
from environment import environment
from local_fits import LocalFits
from torch import Tensor, nn

from pfedst.adapters import WholeModel
from pfedst.client.module import FederatedClient
from pfedst.data import FederatedDataModule, FedISIC2019
from pfedst.encoders import AnchorHead, Encoder, FrozenCLIP, Pixels, Taps
from pfedst.messages.payload import State, same_tensors
from pfedst.methods.registry import registered_methods

RESULT = Path(__file__).resolve().parent / "results" / "images.json"
IMAGE_SIZE = 64
MODELS = ("small CNN", "LoRA in ViT-B/16")
AUGMENTATIONS = ("none", "flips", "crops")
MEBI = 2**20


class SmallCNN(WholeModel):
    """Three convolutions with batch norm and pooling, then a linear layer on the mean over pixels."""

    def __init__(self, encoder: Encoder, head: AnchorHead) -> None:
        super().__init__(encoder, head)
        widths = (3, 16, 32, 64)
        pairs = itertools.pairwise(widths)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b)) for a, b in pairs)
        self.fc = nn.Linear(widths[-1], len(head.class_names))

    def forward(self, taps: Taps) -> Tensor:
        """Return logits (B, K)."""
        (x,) = taps.tensors
        for block in self.blocks:
            x = F.max_pool2d(block(x).relu(), 2)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def templates(weights: Path) -> dict[str, tuple[str, FederatedClient]]:
    """Return method and template of each model."""
    tower = FrozenCLIP(weights=str(weights), image_size=IMAGE_SIZE)
    return {
        MODELS[0]: ("FedAvg", FederatedClient(Pixels(IMAGE_SIZE), SmallCNN, "learned", loss=None)),
        MODELS[1]: ("FedLoRA", FederatedClient(tower, anchors="learned", loss=None)),
    }


def data_of(root: Path, augmentation: Any, cache: Any, folder: Path) -> FederatedDataModule:
    return FedISIC2019(
        root=root, centers=[1, 2, 3, 5], validation_fraction=0, verify_images=False, augmentation=augmentation,
        cache=cache, cache_folder=folder,
    )  # fmt: skip


class Side:
    """One local epoch of every site, of at most so many batches."""

    def __init__(self, template: FederatedClient, method: str, data: FederatedDataModule, folder: Path) -> None:
        started = time.process_time()
        self.fits = LocalFits(template, data, registered_methods()[method](), folder)
        self.client = self.fits.client
        self.prepare_seconds = time.process_time() - started

    def epoch(self, number: int, batches: int) -> tuple[float, int, State]:
        """Return processor seconds, images and the state of the last client."""
        started = time.process_time()
        with self.client.local.at_most(batches):
            images = sum(record["images"] for record in self.fits.fit(self.fits.requests(number)))
        return time.process_time() - started, images, self.client.model.own_state()


def measure(
    root: Path,
    template: FederatedClient,
    method: str,
    augmentation: str,
    batches: int,
    repeats: int,
    cache_folder: Path,
) -> dict[str, Any]:
    """Measure one row: both sides in turns."""
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            cache: Side(template, method, data_of(root, augmentation, cache, cache_folder), Path(folder) / cache)
            for cache in ("images", "none")
        }
        store = sides["images"].client.data.store
        assert store is not None
        seconds: dict[str, list[float]] = {cache: [] for cache in sides}
        equal = True
        for number in range(1, repeats + 1):
            found = {}
            for cache in sides if number % 2 else reversed(list(sides)):
                taken, images, found[cache] = sides[cache].epoch(number, batches)
                seconds[cache].append(taken)
            equal = equal and same_tensors(found["images"], found["none"])
        return {
            "images": images,
            "store_seconds": statistics.median(seconds["images"]),
            "file_seconds": statistics.median(seconds["none"]),
            "ratio": statistics.median(b / a for a, b in zip(seconds["images"], seconds["none"], strict=True)),
            "bits_equal": equal,
            "fill_seconds": sides["images"].prepare_seconds - sides["none"].prepare_seconds,
            "store_rows": len(store),
            "store_bytes": store.bytes,
            "data": sides["none"].client.data.label,
            "batch_size": sides["none"].client.data.batch_size,
        } | resident()


def resident() -> dict[str, int | None]:
    """Return the resident bytes of this process, with and without those of mapped files; only Linux tells."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {"anonymous_bytes": None, "mapped_bytes": None}
    found = {line.partition(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.startswith("Rss")}
    return {"anonymous_bytes": found["RssAnon"], "mapped_bytes": found["RssFile"]}


def run(root: Path, weights: Path, models: list[str], batches: int, repeats: int) -> None:
    """Measure all rows of some models; the file is complete after each of them."""
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache_folder:
        for name, (method, template) in templates(weights).items():
            for augmentation in AUGMENTATIONS if name in models else ():
                row = measure(root, template, method, augmentation, batches, repeats, Path(cache_folder))
                rows[f"{method}, {name}, {augmentation}"] = row
                result = {"environment": environment(), "rows": rows, "repeats": repeats}
                save(RESULT, result)
                print(f"measured: {name}, {augmentation}", flush=True)


def table() -> None:
    result = json.loads(RESULT.read_text())
    print(
        "| method, model, augmentation | files, ms an image | store, ms an image | files against store | bits | memory "
        f"without mapped files, MiB | mapped, MiB |\n|{'---|' * 7}"
    )
    for name, row in result["rows"].items():
        print(
            f"| {name} | {1000 * row['file_seconds'] / row['images']:.1f} | "
            f"{1000 * row['store_seconds'] / row['images']:.1f} | {row['ratio']:.2f}x | "
            f"{'equal' if row['bits_equal'] else 'NOT equal'} | {row['anonymous_bytes'] / MEBI:,.0f} | "
            f"{row['mapped_bytes'] / MEBI:,.0f} |"
        )
    first = next(iter(result["rows"].values()))
    print(
        f"\n{first['data']}; {IMAGE_SIZE} px, batch {first['batch_size']}, {first['images']:,} images an epoch, "
        f"{result['repeats']} epochs a side in turns, 1 thread, processor time. The store: {first['store_rows']:,} "
        f"squares, {first['store_bytes'] / MEBI:.0f} MiB, filled once in {first['fill_seconds']:.0f} s. Mapped: shared "
        "libraries and the pages of the store that were read. `crops` cuts the whole image, so its training images "
        "are read from files on both sides."
    )


def main() -> None:
    parser, _, runs = run_and_table(__doc__)
    runs.add_argument("--root", type=Path, required=True)
    runs.add_argument("--weights", type=Path, required=True)
    runs.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    runs.add_argument("--batches", type=int, default=4, help="of each site")
    runs.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if given.command == "run":
        run(given.root, given.weights, given.models, given.batches, given.repeats)
    table()


if __name__ == "__main__":
    main()
