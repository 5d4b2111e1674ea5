"""The tap cache: bytes, speed of building and reading, and the error of each dtype.

    python benchmarks/cache.py run [--weights IMAGE_TOWER.safetensors --root FOLDER] [--image-sizes 64 112 224]
    python benchmarks/cache.py table

With `--root` the images are those of FedISIC2019 there, otherwise synthetic ones. Without `--weights` the tower is
random: bytes and speed are the same, and the error is not that of a trained tower (the table says so). Error:
relative error of the taps, and the cosine between the embeddings that block L computes from the stored and from the
exact taps. Reading: batches of 32 in a random order, from the page cache of the system, decoded to float32.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from command_line import run_and_table, save
from environment import environment

from pfedst.data import FederatedDataModule, FedISIC2019, SyntheticSites
from pfedst.data.cache.layout import TapLayout
from pfedst.data.cache.store import TapStore
from pfedst.encoders import FrozenCLIP, TapDtype
from pfedst.encoders.spec import Taps

RESULT = Path(__file__).resolve().parent / "results" / "cache.json"
FEDISIC_IMAGES = 23_247
DTYPES: tuple[TapDtype, ...] = ("float32", "bfloat16", "float16", "int8")
GRIDS: dict[int, list[int | None]] = {224: [None, 7, 4], 112: [None, 4, 2], 64: [None, 2]}
READ_BATCH = 32


def images_of(root: Path | None, encoder: FrozenCLIP, count: int) -> tuple[torch.Tensor, str]:
    data: FederatedDataModule
    if root is None:
        data = SyntheticSites(sites=1, samples_per_site=[count], test_samples_per_site=[8], validation_fraction=0)
    else:
        data = FedISIC2019(root=root, centers=[1], validation_fraction=0, verify_images=False)
    data.batch_size = count
    data.prepare(encoder.preprocessing)
    images, _ = next(iter(data.train_loader(data.sites[0], 0)))
    return images, data.label


def measure(encoder: FrozenCLIP, images: torch.Tensor, folder: Path) -> list[dict[str, Any]]:
    """Measure a row for each dtype."""
    started = time.perf_counter()
    answers = encoder.encode(images, ("pooled", "taps"))
    encode_seconds = time.perf_counter() - started
    exact = answers["taps"]
    rows = []
    for dtype in DTYPES:
        layout = TapLayout.of(encoder.spec, "taps", dtype, encoder.token_grid is not None)
        store = TapStore(folder / f"{encoder.spec.image_size} {encoder.token_grid} {dtype}", layout, {})
        started = time.perf_counter()
        with store.writing():
            store.append([f"{index:032x}" for index in range(len(images))], layout.pack(answers))
        write_seconds = time.perf_counter() - started
        rows.append(
            {
                "image_size": encoder.spec.image_size,
                "tokens": encoder.spec.tokens,
                "token_grid": encoder.token_grid,
                "dtype": dtype,
                "row_bytes": layout.row_bytes,
                "encode_images_per_second": len(images) / encode_seconds,
                "write_images_per_second": len(images) / write_seconds,
                "read_images_per_second": read_speed(store),
                **loss(encoder, store, exact),
            }
        )
    return rows


def read_speed(store: TapStore, repetitions: int = 5) -> float:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randperm(len(store), generator=generator)[:READ_BATCH] for _ in range(repetitions)]
    store.read(batches[0], "taps").decode()  # maps the files
    started = time.perf_counter()
    images = sum(len(store.read(batch, "taps").decode()) for batch in batches)
    return images / (time.perf_counter() - started)


@torch.no_grad()
def loss(encoder: FrozenCLIP, store: TapStore, exact: Taps) -> dict[str, float]:
    stored = store.read(torch.arange(len(store)), "taps").decode()
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(stored.tensors, exact.tensors, strict=True)]
    embeddings = [encoder.finish(taps.tensors[-1], taps.correction) for taps in (stored, exact)]
    cosines = F.cosine_similarity(*embeddings)
    return {"relative_error": max(errors), "cosine_mean": float(cosines.mean()), "cosine_worst": float(cosines.min())}


def run(root: Path | None, weights: Path | None, sizes: list[int], count: int) -> None:
    rows: list[dict[str, Any]] = []
    for size in sizes:
        for grid in GRIDS.get(size, [None]):
            encoder = FrozenCLIP(weights=str(weights or "random"), image_size=size, token_grid=grid)
            images, label = images_of(root, encoder, count)
            with tempfile.TemporaryDirectory() as folder:
                rows += measure(encoder, images, Path(folder))
            print(f"{encoder.label}: done")
    source = "RANDOM WEIGHTS" if weights is None else weights.name
    result = {"environment": environment(), "weights": source, "data": label, "images": count, "rows": rows}
    save(RESULT, result)


def table() -> None:
    result = json.loads(RESULT.read_text())
    print(
        "| image | tokens | dtype | KiB an image | GB for FedISIC | build img/s | hours for FedISIC | read img/s | "
        f"relative error | cosine mean / worst |\n|{'---|' * 10}"
    )
    for row in result["rows"]:
        build = 1 / (1 / row["encode_images_per_second"] + 1 / row["write_images_per_second"])
        tokens = row["tokens"] if row["token_grid"] is None else f"1 + {row['token_grid']}x{row['token_grid']}"
        print(
            f"| {row['image_size']} px | {tokens} | {row['dtype']} | {row['row_bytes'] / 1024:.0f} | "
            f"{row['row_bytes'] * FEDISIC_IMAGES / 1e9:.1f} | {build:.1f} | {FEDISIC_IMAGES / build / 3600:.2f} | "
            f"{row['read_images_per_second']:,.0f} | {row['relative_error']:.1e} | "
            f"{row['cosine_mean']:.5f} / {row['cosine_worst']:.5f} |"
        )
    print(
        f"\nViT-B-16-quickgelu, {result['weights']}; {result['images']} images of {result['data']}; "
        f"{result['environment']['threads']} threads. FedISIC: {FEDISIC_IMAGES:,} images, extrapolated. The embedding "
        "is that of an untrained side network against the same token grid without loss."
    )


def main() -> None:
    parser, _, runs = run_and_table(__doc__)
    runs.add_argument("--root", type=Path)
    runs.add_argument("--weights", type=Path)
    runs.add_argument("--image-sizes", type=int, nargs="+", default=[64, 112, 224])
    runs.add_argument("--images", type=int, default=96)
    given = parser.parse_args()
    if given.command == "run":
        run(given.root, given.weights, given.image_sizes, given.images)
    table()


if __name__ == "__main__":
    main()
