"""One GPU in at most six minutes: the encoder, a step, an epoch, with taps on the host and on the device.

    python benchmarks/gpu.py run [--seconds 330]
    python benchmarks/gpu.py run --device cpu --models vit-nano --image-size 32 --batch-size 4 --images 8
    python benchmarks/gpu.py table

RANDOM weights and SYNTHETIC images. Rows for each image tower: images a second of the encoder in bfloat16 against the
bare tower of open_clip; a training step of pFedST on taps and of LoRA through the tower, with its peak memory; an epoch
of six clients through requests, Trainer and saved state, with cached taps in mapped files on the host and on the
device. Rows that would begin after `--seconds` are left out and named. Writes benchmarks/results/gpu.json.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from command_line import run_and_table, save
from local_fits import LocalFits
from peak_memory import PeakMemory
from step_rows import CACHED, LORA, ROWS, Setting
from torch import Tensor

from pfedst.client.module import FederatedClient
from pfedst.data import SyntheticSites
from pfedst.methods.pfedst import PFedST

RESULT = Path(__file__).resolve().parent / "results" / "gpu.json"
MODELS, IMAGE_SIZE, BATCH_SIZE, IMAGES, CLIENTS = ("ViT-B-16", "ViT-L-14"), 224, 32, 96, 6
STEPS, GIBI = 10, 2**30
Row = dict[str, Any]


def timed(action: Callable[[], object], device: torch.device, repeats: int = STEPS) -> float:
    """Return the median seconds of an action, after two runs that are not counted."""
    taken = []
    for number in range(repeats + 2):
        started = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= 2:
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def encoder_row(setting: Setting) -> Row:
    """Measure images a second in bfloat16: the encoder with all taps, with embeddings alone, and the bare tower."""
    encoder, images = setting.encoder(), setting.images()
    bare: torch.nn.Module | None = None
    if setting.model in open_clip.list_models():
        bare = open_clip.create_model(setting.model, force_image_size=setting.image_size).visual.to(setting.device)
        bare.eval()

    def passed(forward: Callable[[Tensor], object]) -> Callable[[], object]:
        def action() -> object:
            with torch.no_grad(), torch.autocast(setting.device.type, torch.bfloat16):
                return forward(images)

        return action

    forwards: dict[str, Callable[[Tensor], object]] = {
        "taps": lambda pixels: encoder.encode_batch(pixels, ("taps",)),
        "embeddings": lambda pixels: encoder.encode_batch(pixels, ("pooled",)),
    }
    if bare is not None:
        forwards["bare open_clip"] = bare
    speeds = {name: len(images) / timed(passed(forward), setting.device) for name, forward in forwards.items()}
    return {"images_per_second": speeds}


def step_row(setting: Setting, name: str) -> Row:
    """Measure seconds and peak memory of a training step."""
    row, memory = ROWS[name](setting), PeakMemory(setting.device)
    seconds = timed(row.step, setting.device)
    with memory.watched():
        row.step()
    return {"step_seconds": seconds, "peak_bytes": memory.bytes}


def epoch_row(setting: Setting, images: int, held: bool) -> Row:
    """Measure an epoch of all clients on cached taps, in mapped files or on the device, and the time of a round."""
    accelerator = "gpu" if setting.device.type == "cuda" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        data = SyntheticSites(
            CLIENTS, 3, max(16, setting.image_size), [images] * CLIENTS, [6] * CLIENTS, batch_size=setting.batch_size,
            validation_fraction=0, audit="off", verify_images=False, cache="taps", cache_folder=Path(folder) / "cache",
            cache_max_bytes=10**12, cache_device_bytes=10**12 if held else 0,
        )  # fmt: skip
        template = FederatedClient(setting.encoder(), anchors="learned", loss=None)
        started = time.perf_counter()
        fits = LocalFits(template, data, PFedST(), Path(folder) / "sites", accelerator)
        filled = time.perf_counter() - started
        taken = []
        for number in (1, 2, 3):
            started = time.perf_counter()
            records = fits.fit(fits.requests(number))
            taken.append(time.perf_counter() - started)
        assert data.store is not None
        return {
            "seconds": min(taken),
            "images": images * CLIENTS,
            "fill_seconds": filled,
            "row_bytes": data.store.layout.row_bytes,
            "held": data.holds_rows,
            "train_losses": [record["train_loss"] for record in records],
        }


def copy_bandwidth(device: torch.device) -> float:
    """Return the bytes a second of a copy from page-locked memory to the device; on a CPU within its memory."""
    source = torch.empty(64 * 2**20, dtype=torch.uint8)
    source = source.pin_memory() if device.type == "cuda" else source
    target = torch.empty_like(source, device=device)
    return len(source) / timed(lambda: target.copy_(source, non_blocking=True), device)


def measure(
    models: tuple[str, ...], device: torch.device, size: int, batch_size: int, images: int, limit: float
) -> Row:
    """Measure all rows; those that would begin after the limit are named in `left_out`."""
    started = time.perf_counter()
    result: Row = {"rows": {}, "left_out": [], "bytes_per_second": copy_bandwidth(device)}
    for model in models:
        setting = Setting(model, size, batch_size, device)
        parts: dict[str, Callable[[], Row]] = {
            "encoder": lambda of=setting: encoder_row(of),  # type: ignore[misc]
            **{name: lambda of=setting, name=name: step_row(of, name) for name in (CACHED, LORA)},  # type: ignore[misc]
            "epoch, taps in mapped files": lambda of=setting: epoch_row(of, images, False),  # type: ignore[misc]
            "epoch, taps on the device": lambda of=setting: epoch_row(of, images, True),  # type: ignore[misc]
        }
        for name, part in parts.items():
            if time.perf_counter() - started > limit:
                result["left_out"].append(f"{model}: {name}")
            else:
                result["rows"].setdefault(model, {})[name] = part()
                print(f"measured: {model}, {name}", flush=True)
    return result


def run(models: tuple[str, ...], device: torch.device, size: int, batch_size: int, images: int, limit: float) -> None:
    found = measure(models, device, size, batch_size, images, limit)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    protocol = {"device": gpu or "CPU", "image_size": size, "batch_size": batch_size, "images": images}
    save(RESULT, {"protocol": protocol} | found)


def table() -> None:
    """Print everything from the result's file, or that there is none."""
    if not RESULT.exists():
        print("There are no figures of a GPU yet: none was at hand. The script has run on a CPU only, at small sizes.")
        return
    result = json.loads(RESULT.read_text())
    for model, rows in result["rows"].items():
        print(f"\n{model}\n\n| what | figure |\n|---|---|")
        for name, row in rows.items():
            for line in _lines(name, row, result["bytes_per_second"]):
                print(line)
    protocol = result["protocol"]
    print(
        f"\n{protocol['device']}, RANDOM weights, SYNTHETIC images, {protocol['image_size']} px, batch "
        f"{protocol['batch_size']}; {CLIENTS} clients of {protocol['images']} images. Left out: "
        f"{', '.join(result['left_out']) or 'nothing'}."
    )


def _lines(name: str, row: Row, bytes_per_second: float) -> list[str]:
    if "images_per_second" in row:
        return [
            f"| encoder, {what}, bfloat16 | {speed:,.0f} images/s |" for what, speed in row["images_per_second"].items()
        ]
    if "step_seconds" in row:
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / GIBI:.2f} GiB"
        return [f"| step, {name} | {1000 * row['step_seconds']:.1f} ms, peak {peak} |"]
    floor = 1000 * row["row_bytes"] / bytes_per_second
    spent = 1000 * row["seconds"] / row["images"]
    return [f"| {name} | {spent:.2f} ms an image; a copy of its row takes {floor:.2f} ms |"]


def main() -> None:
    parser, _, runs = run_and_table(__doc__)
    runs.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    runs.add_argument("--models", nargs="+", default=list(MODELS))
    runs.add_argument("--image-size", type=int, default=IMAGE_SIZE)
    runs.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    runs.add_argument("--images", type=int, default=IMAGES)
    runs.add_argument("--seconds", type=float, default=330)
    given = parser.parse_args()
    if given.command == "run":
        run(tuple(given.models), given.device, given.image_size, given.batch_size, given.images, given.seconds)
    table()


if __name__ == "__main__":
    main()
