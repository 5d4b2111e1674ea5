"""The data audit: time, memory, and the copies of real images that it finds.

    python benchmarks/audit.py run --root FOLDER        (FedISIC2019's four centres 1, 2, 3, 5)
    python benchmarks/audit.py table

Each kind of copy is made of 200 images and searched among all of them, originals included. The 100,000 rows are a
generated manifest of two sites, read without images in a separate process to measure its peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from environment import environment
from PIL import Image, ImageEnhance, ImageOps

from pfedst.data import FedISIC2019, ManifestSites
from pfedst.data.audit import audit, scan
from pfedst.data.audit.alike import _changes, find_alike, thumbnail

RESULT = Path(__file__).resolve().parent / "results" / "audit.json"
COPIED = 200
ROWS = 100_000
DESCRIPTOR = 216


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    content = BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content).convert("RGB")


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Return the middle of an image, resized to the original size."""
    width, height = image.size
    margins = (width * (1 - share) / 2, height * (1 - share) / 2)
    box = (margins[0], margins[1], width - margins[0], height - margins[1])
    return image.resize(image.size, Image.Resampling.BICUBIC, box)


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG quality 40": lambda image: jpeg(image, 40),
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "brighter by 20 %": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "less contrast, 20 %": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "mirrored": ImageOps.mirror,
    "a quarter turn": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "turned by 5 degrees": lambda image: image.rotate(5, Image.Resampling.BICUBIC),
    "the middle 90 %": lambda image: cropped(image, 0.9),
    "the middle 80 %": lambda image: cropped(image, 0.8),
}


def images(root: Path) -> dict[str, Any]:
    """Measure the scan of every image of the four centres, the comparison alone, and the copies that are found."""
    data = FedISIC2019(root, centers=[1, 2, 3, 5])
    found = data.found()
    started = time.perf_counter()
    seen = scan(found, compare=True)
    report = audit(found, data.label, seen)
    whole = time.perf_counter() - started
    sources = [(part.source, row) for _, _, part in found.parts() for row in range(len(part.labels))]
    thumbnails = [thumbnail(source.load(row)) for source, row in sources]
    started = time.perf_counter()
    find_alike(thumbnails)
    compare = time.perf_counter() - started
    originals = [source.load(row) for source, row in sources[:: len(sources) // COPIED][:COPIED]]
    recall, wrong = {}, {}
    for kind, change in KINDS.items():
        pairs = find_alike([thumbnail(image) for image in originals] + [thumbnail(change(i)) for i in originals])
        right = {(pair.first, pair.second) for pair in pairs if pair.second - pair.first == COPIED}
        recall[kind], wrong[kind] = len(right) / COPIED, len(pairs) - len(right)
    return {
        "data": data.label,
        "images": len(sources),
        "whole_seconds": whole,
        "compare_seconds": compare,
        "compare_flops": 2 * len(sources) ** 2 * DESCRIPTOR * len(_changes()),
        "pairs": len(seen.alike),
        "likeness": [round(likeness, 3) for _, _, likeness in seen.alike],
        "findings": report.tally(),
        "recall": recall,
        "other_pairs": wrong,
    }


def rows(folder: Path) -> dict[str, Any]:
    """Audit a manifest of 100,000 rows without images. Call it in a separate process."""
    lines = ["path,label,site,split,group"]
    for number in range(ROWS):
        split = "test" if number % 5 == 0 else "train"
        lines.append(f"images/{number:06}.png,class_{number % 7},site_{number % 2},{split},patient_{number // 3}")
    (folder / "manifest.csv").write_text("\n".join(lines))
    data = ManifestSites(folder / "manifest.csv")
    started = time.perf_counter()
    report = audit(data.found(files=False), data.label, None)
    json.dumps(report.to_json())
    return {
        "rows": ROWS,
        "seconds": time.perf_counter() - started,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "findings": report.tally(),
    }


def table() -> None:
    result = json.loads(RESULT.read_text())
    looked, tables = result["images"], result["rows"]
    print("| what | figure |\n|---|---|")
    print(f"| {looked['images']:,} real images opened, compared, reported | {looked['whole_seconds']:.1f} s |")
    floor = looked["compare_flops"] / 1e9
    speed = floor / looked["compare_seconds"]
    print(
        f"| of which comparing all pairs | {looked['compare_seconds']:.1f} s for {floor:.0f} GFLOP of products "
        f"({speed:.0f} GFLOP/s) |"
    )
    print(f"| pairs found alike, likeness | {looked['pairs']}: {', '.join(map(str, looked['likeness']))} |")
    print(f"| {tables['rows']:,} rows without images | {tables['seconds']:.1f} s, ", end="")
    print(f"peak {tables['peak_memory_bytes'] / 2**30:.2f} GiB |\n")
    print(f"| copies of {COPIED} images | found | other pairs |\n|---|---|---|")
    for kind, share in looked["recall"].items():
        print(f"| {kind} | {100 * share:.1f} % | {looked['other_pairs'][kind]} |")
    print(f"\n{looked['data']}; {result['environment']['threads']} threads. Thresholds were set on these images.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "rows", "table"])
    parser.add_argument("--root", type=Path)
    given = parser.parse_args()
    if given.command == "run":
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            output = subprocess.run(
                [sys.executable, __file__, "rows", "--root", folder], check=True, capture_output=True, text=True
            ).stdout
        content = {"environment": environment(), "images": images(given.root), "rows": json.loads(output)}
        RESULT.write_text(json.dumps(content, indent=1) + "\n")
    elif given.command == "rows":
        print(json.dumps(rows(given.root)))
    if given.command != "rows":
        table()
