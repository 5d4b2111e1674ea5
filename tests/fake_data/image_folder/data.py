"""A fake imagefolder of Hugging Face with its metadata, and the same set as `save_to_disk` writes it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fake_data.folder.data import image

SITES, CLASSES = ("north", "south"), ("benign", "malignant")
Row = dict[str, Any]


def own_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """No network, and no file in the user's cache (the library reads the variables but once)."""
    import datasets

    for name, value in (("HF_HUB_OFFLINE", "1"), ("HF_HOME", folder), ("HF_DATASETS_CACHE", folder / "datasets")):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def rows(split: str) -> list[Row]:
    """Two sites, two classes; two images a patient."""
    return [
        {"file_name": f"{s}_{c}_{i}.png", "label": c, "site": s, "group": f"{split}{s}{c}{i // 2}"}
        for s in SITES
        for c in CLASSES
        for i in range(4 if split == "train" else 2)
    ]


def make(
    root: Path, change: Callable[[str, list[Row]], list[Row]] | None = None, table: str = "csv", train: str = "train"
) -> Path:
    """Images, and `metadata.csv` or `metadata.jsonl` in each split; `train` is how that folder is called."""
    seed = 0
    for split, folder in (("train", train), ("test", "test")):
        found = rows(split)
        for row in found:
            seed += 1
            image(root / folder / row["file_name"], seed, 20)
        found = change(split, found) if change else found
        with (root / folder / f"metadata.{table}").open("w", newline="") as opened:
            if table == "jsonl":
                opened.write("".join(json.dumps(row) + "\n" for row in found))
            else:
                writer = csv.DictWriter(opened, list(found[0]))
                writer.writeheader()
                writer.writerows(found)
    return root


def save(
    root: Path,
    target: Path,
    names: Sequence[str] | None = CLASSES,
    change: Callable[[str, dict[str, list[Any]]], None] | None = None,
    splits: Sequence[str] = ("train", "test"),
) -> Path:
    """What `make` wrote as a DatasetDict with the images' bytes; labels are a ClassLabel of `names`, or text."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, disable_progress_bars

    disable_progress_bars()
    found = {}
    for split, wanted in zip(("train", "test"), splits, strict=True):
        table = rows(split)
        columns: dict[str, list[Any]] = {key: [row[key] for row in table] for key in ("label", "site", "group")}
        columns["image"] = [
            {"path": r["file_name"], "bytes": (root / split / r["file_name"]).read_bytes()} for r in table
        ]
        if names:
            columns["label"] = [names.index(label) for label in columns["label"]]
        if change:
            change(split, columns)
        kinds = {"image": Image(), "label": ClassLabel(names=list(names)) if names else Value("string")}
        features = Features({name: kinds.get(name, Value("string")) for name in columns})
        found[wanted] = Dataset.from_dict(columns, features=features)
    DatasetDict(found).save_to_disk(str(target))
    return target
