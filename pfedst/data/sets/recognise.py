"""Find the data module that reads a given folder or file."""

from __future__ import annotations

from pathlib import Path

from pfedst.data.folders import folders
from pfedst.data.sets.layouts import IMAGE_FOLDERS, LAYOUT, SAVED
from pfedst.data.sites import split_of
from pfedst.errors import DataError

TABLES = (".csv", ".tsv", ".parquet")


def recognise(path: Path) -> tuple[str, dict[str, str]]:
    """Return the name of the data module for a path, and its options.

    Raises:
        DataError: If the path does not exist, or its content is unknown.
    """
    if path.is_file():
        if path.suffix.lower() in TABLES:
            return "ManifestSites", {"manifest": str(path)}
        raise DataError(f"{path}: no table; give a .csv or .parquet manifest, or a folder")
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    root, inside = {"root": str(path)}, folders(path)
    if set(IMAGE_FOLDERS) & set(inside) or any(path.glob("train_test_split")):
        return "FedISIC2019", root
    if any(list((path / name).glob("*_[cC][rR]*.txt")) for name in inside if name.lower() == "splits"):
        return "FedDRG", root
    if any((path / name).is_file() for name in SAVED):
        return "HuggingFaceSites", root
    if any(list((path / "train").glob(f"metadata.{suffix}")) for suffix in ("csv", "jsonl", "parquet")):
        return "HuggingFaceSites", root
    if (path / "manifest.csv").is_file():
        return "ManifestSites", {"manifest": str(path / "manifest.csv")}
    if any(split_of(folder) == "train" for name in inside for folder in folders(path / name)):
        return "FolderSites", root
    raise DataError(
        f"{path}: its layout is not known; {LAYOUT}. For any other tree of folders pfedst data init {path} writes a "
        f"manifest for you to check"
    )
