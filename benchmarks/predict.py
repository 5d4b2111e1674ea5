"""Images a second of a prediction, against a bare loop of open_clip's image tower on the same decoded images.

    python benchmarks/predict.py run
    python benchmarks/predict.py table

ViT-B/16 with RANDOM WEIGHTS and random images: only time is measured. The loops take turns, and the ratio is the
median over turns, so that a busy machine disturbs all alike. A prediction computes tower, adapter and class
probabilities of the personal model of pFedST, or of the personal and the generic one; the bare loop computes the
embedding alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from environment import environment
from torch import Tensor

from pfedst.inference.predict import logits_of
from pfedst.inference.rebuild import GENERIC, PERSONAL, Rebuilt
from pfedst.inference.site_model import SiteModel

RESULT = Path(__file__).resolve().parent / "results" / "predict.json"
MODEL = "ViT-B-16-quickgelu"
TURNS = 5
SETTINGS = [(112, 2, 1), (112, 2, 16), (224, None, 1), (224, None, 16)]
"""Image size, side of the grid of averaged patches, images a batch."""


def models_of(size: int, grid: int | None, model: str = MODEL) -> list[SiteModel]:
    """Return the personal and the generic model of a run that was never trained."""
    encoder = {"model": model, "weights": "random", "image_size": size, "token_grid": grid}
    options = {
        "model": {
            "encoder": {"class_path": "pfedst.encoders.FrozenCLIP", "init_args": encoder},
            "anchors": "prototypes",
        },
        "method": {"class_path": "pfedst.methods.pfedst.PFedST"},
    }
    classes = [f"class {number}" for number in range(8)]
    built = Rebuilt.of(options, classes)
    for each in (built.model, built.generic):
        each.set_anchors(torch.randn(len(classes), built.encoder.spec.embedding))
    return [SiteModel(built.encoder, built.adapter(which), tuple(classes), which) for which in (PERSONAL, GENERIC)]


def measure(size: int, grid: int | None, batch_size: int, model: str = MODEL, turns: int = TURNS) -> dict[str, Any]:
    """Return images a second of the loops, and the median ratios."""
    models = models_of(size, grid, model)
    tower = open_clip.create_model(model, force_image_size=size).visual.eval().requires_grad_(False)
    batches = torch.randn(16, 3, size, size).split(batch_size)
    loops: dict[str, Callable[[], None]] = {
        "bare": lambda: bare(tower, batches),
        "one": lambda: predicted(models[:1], batches),
        "both": lambda: predicted(models, batches),
    }
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(turns + 1):
        for name, loop in loops.items():
            started = time.perf_counter()
            loop()
            seconds[name] += [time.perf_counter() - started] if turn else []
    found = {f"{name}_images_a_second": 16 / statistics.median(times) for name, times in seconds.items()}
    for name in ("one", "both"):
        ratios = [without / other for without, other in zip(seconds["bare"], seconds[name], strict=True)]
        found[f"{name}_ratio"] = statistics.median(ratios)
    return {"image_size": size, "token_grid": grid, "batch_size": batch_size} | found


def bare(tower: torch.nn.Module, batches: tuple[Tensor, ...]) -> None:
    with torch.inference_mode():
        for images in batches:
            tower(images)


def predicted(models: list[SiteModel], batches: tuple[Tensor, ...]) -> None:
    for images in batches:
        for model, logits in zip(models, logits_of(models, images, "32"), strict=True):
            model.probabilities(logits, model.prior)


def run() -> None:
    rows = []
    for setting in SETTINGS:
        rows.append(measure(*setting))
        print(rows[-1], flush=True)
    RESULT.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")


def table() -> None:
    """Print the table."""
    found = json.loads(RESULT.read_text())
    heads = ("image size, px", "patches", "batch", "bare tower, images/s")
    heads += ("personal model, images/s", "ratio", "personal and generic, images/s", "ratio")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in found["rows"]:
        grid = "all" if row["token_grid"] is None else f"averaged to {row['token_grid']}x{row['token_grid']}"
        cells = [f"{row['bare_images_a_second']:.2f}"]
        for name in ("one", "both"):
            cells += [f"{row[f'{name}_images_a_second']:.2f}", f"{row[f'{name}_ratio']:.2f}"]
        print(f"| {row['image_size']} | {grid} | {row['batch_size']} | {' | '.join(cells)} |")
    machine = found["environment"]
    print(
        f"\n{MODEL} with RANDOM WEIGHTS, {machine['threads']} threads on {machine['processor']}; the same decoded "
        f"images. The ratio is the median over {TURNS} turns."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    {"run": run, "table": table}[parser.parse_args().command]()
