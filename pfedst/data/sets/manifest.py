"""Images listed in a CSV or parquet manifest: path, label, site, optionally split and group."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pfedst.data.datamodule import FederatedDataModule
from pfedst.data.files import shown
from pfedst.data.folders import existing_folder
from pfedst.data.left_out import left_out
from pfedst.data.sets.columns import NEEDED, SINGLE_LABEL, plain_columns, refuse_several, with_columns
from pfedst.data.sites import SPLITS, LabelledImages, Sites, Split, class_index, class_order, split_of
from pfedst.data.sources import Record
from pfedst.data.tables import read_table
from pfedst.errors import ConfigurationError, DataError, nearest
from pfedst.names import plain_name, plain_names, respelled

TEST_FRACTION = 0.2
"""Share of the groups that is drawn to test if no option says."""


class ManifestSites(FederatedDataModule):
    """Images listed in a table with the columns `path`, `label`, `site`, and optionally `split` and `group`.

    Without a column `label`, columns of 0 and 1 are the classes (one-hot). Without a column `split`, test is drawn by
    groups with `split_seed`.

    Args:
        manifest: the table: .csv (comma, semicolon or tab; UTF-8, UTF-16 or Windows-1252) or .parquet (needs
            pfedst[parquet]).
        root: folder to which the paths are relative. No path may lead out of it (see `outside_files`). Default: the
            folder of the manifest.
        class_names: names of the classes in the order of their indices. Labels may then be indices or names. Default:
            all names found, sorted.
        columns: other headings of the columns, such as `{path: Datei, label: Diagnose, site: Klinik}`; `label` may be
            a list of columns of 0 and 1, one for each class.
        test_fraction: share of each class's groups that is drawn to test at each site, in (0, 1), for a table without a
            column `split`. Default: 0.2.
        options: options of FederatedDataModule.

    Raises:
        ConfigurationError: If an option is out of range.
    """

    def __init__(
        self,
        manifest: Path | str | None = None,
        root: Path | str | None = None,
        class_names: Sequence[str] | None = None,
        columns: dict[str, str | list[str]] | None = None,
        test_fraction: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if test_fraction is not None and not 0 < test_fraction < 1:
            raise ConfigurationError(f"--data.test_fraction {test_fraction}: must be above 0 and below 1")
        if test_fraction is not None and self.folds is not None:
            raise ConfigurationError(
                f"--data.test_fraction {test_fraction} has no effect with --data.folds, which draw test; leave it out"
            )
        self.manifest = manifest
        self.root = root
        self.wanted_classes = plain_names(class_names or [])
        self.columns = plain_columns(columns)
        self.test_fraction = test_fraction

    def read(self) -> Sites:
        """Read the table and check every row."""
        if self.manifest is None:
            raise DataError(
                "--data.manifest: give the table of the images, .csv or .parquet; pfedst data init makes one"
            )
        if not Path(self.manifest).is_file():
            raise DataError(f"--data.manifest {self.manifest}: no such file; give a .csv or .parquet table")
        file = Path(self.manifest)
        root = file.parent if self.root is None else existing_folder(self.root, "--data.root")
        self.label = f"images listed in {file.name}"
        whole = read_table(file)
        table = with_columns(file, whole, self.columns, self.subgroups.columns)
        if table.empty:
            raise DataError(f"{file}: no rows")
        written = {column: table[column].map(_text) for column in ("label", "site", "group") if column in table}
        for column, texts in written.items():
            table[column] = texts.map(plain_name)
        refuse_several(file, table["label"].to_list())
        classes = self.wanted_classes or class_order(label for label in table["label"] if label)
        fraction = self._fraction_to_draw(file, "split" in table)
        if "split" not in table:
            table["split"] = "train"
        if fraction:
            drawn = f"no column split: {fraction:g} of the groups drawn to test, split seed {self.split_seed}"
            logging.getLogger("pfedst").warning("%s has %s", file, drawn)
            self.label += f" ({drawn})"
        parts, rows = self._parts(file, table, root, classes)
        return Sites(
            classes,
            dict(sorted(parts.items())),
            f"correct the paths in {file}, or set --data.root",
            f"give all rows of a group one split in {file}",
            [root],
            rows,
            file,
            left_out=_left_out(root, file, rows),
            respelled=[text for column, texts in written.items() for text in _respelled(column, texts, table[column])],
            test_fraction=fraction,
            subgroups={
                column: dict(zip(rows, found, strict=True))  # in the order of the table, a row a file
                for column, found in self.subgroups.read(file, whole).items()
            },
        )

    def _fraction_to_draw(self, file: Path, has_splits: bool) -> float:
        """Return the share of the groups to draw to test: 0 if the table names the splits, or with folds."""
        if not has_splits and self.folds is not None:
            return 0.0
        if not has_splits:
            return TEST_FRACTION if self.test_fraction is None else self.test_fraction
        if self.test_fraction is not None:
            raise ConfigurationError(
                f"--data.test_fraction {self.test_fraction}: {file} has a column of splits; leave the option out, or "
                f"remove the column"
            )
        return 0.0

    def _parts(
        self, file: Path, table: pd.DataFrame, root: Path, classes: Sequence[str]
    ) -> tuple[dict[str, dict[Split, LabelledImages]], dict[Path, str]]:
        """Return the images of every site and split, and the row of every file."""
        splits: dict[str, dict[Split, list[Record]]] = {}
        rows: dict[Path, str] = {}
        labels: dict[Path, int] = {}
        for line, row in enumerate(table.to_dict("records"), start=2):
            where = f"{file}, line {line}"
            record, site, split = self._row(where, row, root, classes)
            if record.path in rows:
                before = rows[record.path].removeprefix(f"{file}, ")
                several = labels[record.path] != record.label
                what = f" with another class (multi-label): {SINGLE_LABEL}" if several else "; keep one"
                raise DataError(f"{where}: {shown(record.path)} is already on {before}{what}")
            rows[record.path], labels[record.path] = where, record.label
            splits.setdefault(site, {}).setdefault(split, []).append(record)
        return {s: {k: LabelledImages.from_records(v) for k, v in p.items()} for s, p in splits.items()}, rows

    def _row(self, where: str, row: dict[Any, Any], root: Path, classes: Sequence[str]) -> tuple[Record, str, Split]:
        for column in (*NEEDED, "split"):
            if not _text(row[column]):
                raise DataError(f'{where}: the column "{column}" is empty')
        split = split_of(row["split"])
        if split is None:
            raise DataError(
                f'{where}: split "{row["split"]}" is unknown.{nearest(str(row["split"]), SPLITS)} '
                f"Use {', '.join(SPLITS)}"
            )
        label = class_index(where, row["label"], classes, bool(self.wanted_classes))
        return Record(root / str(row["path"]), label, row.get("group") or None), row["site"], split


def _text(value: Any) -> str:
    """Return a cell as text, "" for an empty one. The text "nan" is a valid name; a parquet table can hold real NaN."""
    return "" if value is None or value != value else str(value)


def _respelled(column: str, texts: pd.Series[str], names: pd.Series[str]) -> list[str]:
    if column == "group":  # patients are counted and not named
        count = sum(len(set(of)) > 1 for _, of in texts.groupby(names))
        return [f"{count:,} groups"] if count else []
    kind = "class" if column == "label" else column
    return respelled(kind, {str(name): set(of) for name, of in texts.groupby(names)})


def _left_out(root: Path, file: Path, used: Mapping[Path, str]) -> dict[str, Counter[str]]:
    """Count the other files in the folders of the listed images, as far as these lie in the root."""
    inside = Path(os.path.realpath(root))
    folders = [
        folder for folder in {path.parent for path in used} if Path(os.path.realpath(folder)).is_relative_to(inside)
    ]
    counts = left_out(sorted(folders), {*used, file}, below=False, images="images that the table does not list")
    return {"": counts} if counts else {}
