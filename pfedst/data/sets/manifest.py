"""Images listed in a CSV or parquet manifest: path, label, site, split, optional group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pfedst.data.datamodule import FederatedDataModule
from pfedst.data.files import shown
from pfedst.data.folders import existing_folder
from pfedst.data.sites import SPLITS, LabelledImages, Sites, class_index, class_order
from pfedst.data.sources import Record
from pfedst.data.tables import column_names, read_table
from pfedst.errors import DataError, nearest

COLUMNS = ("path", "label", "site", "split")


class ManifestSites(FederatedDataModule):
    """Images listed in a table with the columns `path`, `label`, `site`, `split`, and optionally `group`.

    Args:
        manifest: the table: .csv (comma, semicolon or tab) or .parquet (needs pfedst[parquet]).
        root: folder to which the paths are relative. No path may lead out of it (see `outside_files`). Default: the
            folder of the manifest.
        class_names: names of the classes in the order of their indices. Labels may then be indices or names. Default:
            all names found, sorted.
        options: options of FederatedDataModule.
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
                    f'{file}: no column "{column}" (found: {column_names(table)}); '
                    f"needed: {', '.join(COLUMNS)}, optional: group"
                )
        if table.empty:
            raise DataError(f"{file}: no rows")
        classes = list(self.wanted_classes or class_order(str(label) for label in table["label"] if not _empty(label)))
        splits: dict[str, dict[Any, list[Record]]] = {}
        rows: dict[Path, str] = {}
        for line, row in enumerate(table.to_dict("records"), start=2):
            where = f"{file}, line {line}"
            record, site, split = self._row(where, row, root, classes)
            if record.path in rows:
                before = rows[record.path].removeprefix(f"{file}, ")
                raise DataError(f"{where}: {shown(record.path)} is already on {before}; keep one")
            rows[record.path] = where
            splits.setdefault(site, {}).setdefault(split, []).append(record)
        parts = {s: {k: LabelledImages.from_records(v) for k, v in p.items()} for s, p in splits.items()}
        return Sites(
            classes,
            dict(sorted(parts.items())),
            f"correct the paths in {file}, or set --data.root",
            f"give all rows of a group one split in {file}",
            [root],
            rows,
            file,
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
        group = row.get("group")
        known = None if _empty(group) else str(group)
        label = class_index(where, str(row["label"]), classes, self.wanted_classes is not None)
        return Record(root / str(row["path"]), label, known), str(row["site"]), str(row["split"])


def _empty(value: Any) -> bool:
    """Return True if a cell is empty. The text "nan" is a valid name; a parquet table can hold real NaN."""
    return value is None or value != value or str(value) == ""
