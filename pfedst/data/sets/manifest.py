"""A CSV or parquet manifest: path, label, site, split, optional group."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pfedst.data.datamodule import FederatedDataModule
from pfedst.data.sets.folder import existing_folder
from pfedst.data.sites import SPLITS, LabelledImages, Sites, class_index, class_order
from pfedst.data.sources import Record
from pfedst.errors import DataError, nearest

COLUMNS = ("path", "label", "site", "split")


class ManifestSites(FederatedDataModule):
    """Images that a table lists: columns `path`, `label`, `site`, `split`, and optionally `group`.

    Args:
        manifest: the table: .csv (comma, semicolon or tab) or .parquet (needs pfedst[parquet]).
        root: paths are relative to this folder and may not lead out of it; default: the manifest's folder.
        class_names: in the order of their indices; labels may then be indices as well as names. Default: all names
            found, sorted.
        options: those of FederatedDataModule.
    """

    def __init__(
        self,
        manifest: Path | str | None = None,
        root: Path | str | None = None,
        class_names: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.manifest = manifest
        self.root = root
        self.wanted_classes = class_names

    def read(self) -> Sites:
        """Read the table and check every row."""
        if self.manifest is None or not Path(self.manifest).is_file():
            raise DataError(f"--data.manifest {self.manifest}: no such file; give a .csv or .parquet table")
        file = Path(self.manifest)
        root = file.parent if self.root is None else existing_folder(self.root, "--data.root")
        self.label = f"images listed in {file.name}"
        table = read_table(file)
        for column in COLUMNS:
            if column not in table.columns:
                raise DataError(
                    f'{file}: no column "{column}" (found: {", ".join(map(str, table.columns))}); '
                    f"needed: {', '.join(COLUMNS)}, optional: group"
                )
        if table.empty:
            raise DataError(f"{file}: no rows")
        classes = list(self.wanted_classes or class_order(str(label) for label in table["label"] if not _empty(label)))
        splits: dict[str, dict[Any, list[Record]]] = {}
        seen: dict[Path, int] = {}
        for line, row in enumerate(table.to_dict("records"), start=2):
            record, site, split = self._row(f"{file}, line {line}", row, root, classes)
            if record.path in seen:
                raise DataError(f"{file}, line {line}: {row['path']} is already on line {seen[record.path]}; keep one")
            seen[record.path] = line
            splits.setdefault(site, {}).setdefault(split, []).append(record)
        parts = {s: {k: LabelledImages.from_records(v) for k, v in p.items()} for s, p in splits.items()}
        return Sites(
            classes,
            dict(sorted(parts.items())),
            f"correct the paths in {file}, or set --data.root",
            f"give all rows of a group one split in {file}",
        )

    def _row(self, where: str, row: dict[Any, Any], root: Path, classes: Sequence[str]) -> tuple[Record, str, str]:
        for column in COLUMNS:
            if _empty(row[column]):
                raise DataError(f'{where}: the column "{column}" is empty')
        if row["split"] not in SPLITS:
            raise DataError(
                f'{where}: split "{row["split"]}" is unknown.{nearest(str(row["split"]), SPLITS)} '
                f"Use {', '.join(SPLITS)}"
            )
        path = root / str(row["path"])
        if not path.resolve().is_relative_to(root.resolve()):
            raise DataError(f"{where}: {row['path']} leads out of {root}; give --data.root a folder that holds all")
        group = row.get("group")
        known = None if _empty(group) else str(group)
        return (
            Record(path, class_index(where, str(row["label"]), classes, self.wanted_classes is not None), known),
            str(row["site"]),
            str(row["split"]),
        )


def _empty(value: Any) -> bool:
    """Whether a cell holds nothing; the text "nan" is a name like any other, a parquet table has real ones."""
    return value is None or value != value or str(value) == ""


def read_table(file: Path) -> pd.DataFrame:
    """A CSV table (any of comma, semicolon, tab) with all values as text, or a parquet table.

    Raises:
        DataError: it cannot be read.
    """
    try:
        if file.suffix == ".parquet":
            return pd.read_parquet(file)
        with file.open(encoding="utf-8-sig", newline="") as opened:
            header = opened.readline()
        separator = max(",;\t", key=header.count)
        return pd.read_csv(
            file,
            sep=separator,
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
            quoting=csv.QUOTE_MINIMAL,
        )
    except ImportError as error:
        raise DataError(f"{file}: reading parquet needs pip install 'pfedst[parquet]', or give a .csv") from error
    except (ValueError, OSError, pd.errors.ParserError) as error:  # pyarrow's errors are ValueErrors
        raise DataError(f"{file}: not a readable table ({error})") from error
