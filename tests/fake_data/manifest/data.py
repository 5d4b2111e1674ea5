"""A fake CSV manifest with groups, beside its images."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.fake_data.folder.data import CLASSES, image


def rows(train: int = 6, test: int = 4) -> list[dict[str, str]]:
    """Two sites, three classes; two images a patient."""
    found = []
    for site in ("north", "south"):
        for split, count in (("train", train), ("test", test)):
            for label in CLASSES:
                for number in range(count):
                    path = f"images/{site}_{split}_{label}_{number}.png"
                    group = f"{site}{split}{label}{number // 2}"
                    found.append({"path": path, "label": label, "site": site, "split": split, "group": group})
    return found


def make(root: Path, table: list[dict[str, str]] | None = None, separator: str = ",") -> Path:
    """Write images and `manifest.csv`; the manifest's path."""
    root.mkdir(parents=True, exist_ok=True)
    for seed, row in enumerate(rows()):
        image(root / row["path"], seed)
    table = rows() if table is None else table
    file = root / "manifest.csv"
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(table[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(table)
    return file
