"""An epoch of pFedST over the four FedISIC centres, everything included, with the tap cache and without.

    python benchmarks/epoch.py run --root FOLDER --weights IMAGE_TOWER.safetensors [--image-size 112]
    python benchmarks/epoch.py table

One local epoch of every site on all its training images (no validation is cut off): requests, reading, steps,
optimiser, Trainer, saved state. The cache is built before; `pfedst cache build` reports the time of that.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from command_line import run_and_table, save
from local_fits import LocalFits

from pfedst.client.module import FederatedClient
from pfedst.data import FederatedDataModule, FedISIC2019
from pfedst.encoders import FrozenCLIP
from pfedst.methods.pfedst import PFedST

RESULT = Path(__file__).resolve().parent / "results" / "epoch.json"
ROWS: dict[str, dict[str, Any]] = {
    "cached, all patches": {"token_grid": None, "cache": "taps"},
    "cached, 4x4": {"token_grid": 4, "cache": "taps"},
    "cached, 2x2": {"token_grid": 2, "cache": "taps"},
    "tower recomputed": {"token_grid": None, "cache": "none"},
}


def measure(encoder: FrozenCLIP, data: FederatedDataModule) -> dict[str, Any]:
    """Time one local epoch of every site."""
    template = FederatedClient(encoder, anchors="learned", loss=None)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        fits = LocalFits(template, data, PFedST(), Path(folder))
        prepare_seconds = time.perf_counter() - started
        requests = fits.requests(1)
        started, processor = time.perf_counter(), time.process_time()
        losses = [record["train_loss"] for record in fits.fit(requests)]
        epoch_seconds, processor_seconds = time.perf_counter() - started, time.process_time() - processor
    return {
        "prepare_seconds": prepare_seconds,
        "epoch_seconds": epoch_seconds,
        "processor_seconds": processor_seconds,
        "images": sum(fits.samples.values()),
        "train_losses": losses,
        "batch_size": data.batch_size,
        "data": data.label,
        "encoder": encoder.label,
    }


def run(root: Path, weights: Path, image_size: int) -> None:
    """Measure all rows."""
    torch.manual_seed(0)
    rows = {}
    for name, row in ROWS.items():
        encoder = FrozenCLIP(weights=str(weights), image_size=image_size, token_grid=row["token_grid"])
        data = FedISIC2019(
            root=root, centers=[1, 2, 3, 5], validation_fraction=0, verify_images=False, cache=row["cache"],
            cache_max_bytes=10**12,
        )  # fmt: skip
        rows[name] = measure(encoder, data)
    save(RESULT, {"rows": rows})


def table() -> None:
    result = json.loads(RESULT.read_text())
    rows = result["rows"]
    slowest = rows["tower recomputed"]
    print("| epoch | seconds | images a second | against recomputing | on the wall | mean training loss |")
    print(f"|{'---|' * 6}")
    for name, row in rows.items():
        print(
            f"| {name} | {row['processor_seconds']:.0f} | {row['images'] / row['processor_seconds']:.1f} | "
            f"{slowest['processor_seconds'] / row['processor_seconds']:.1f}x | {row['epoch_seconds']:.0f} | "
            f"{sum(row['train_losses']) / len(row['train_losses']):.4f} |"
        )
    same = rows["cached, all patches"]["train_losses"] == slowest["train_losses"]
    print(
        f"\n{slowest['encoder']}; {slowest['data']}; {slowest['images']:,} images, batch {slowest['batch_size']}; "
        f"threads: {result['environment']['threads']}. Seconds: processor time, as the machine had other work. "
        f"The losses with all patches are "
        f"{'bit-equal' if same else 'NOT equal'} with and without the cache."
    )


def main() -> None:
    parser, _, runs = run_and_table(__doc__)
    runs.add_argument("--root", type=Path, required=True)
    runs.add_argument("--weights", type=Path, required=True)
    runs.add_argument("--image-size", type=int, default=112)
    given = parser.parse_args()
    if given.command == "run":
        run(given.root, given.weights, given.image_size)
    table()


if __name__ == "__main__":
    main()
