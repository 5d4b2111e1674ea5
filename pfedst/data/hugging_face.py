"""Images that the `datasets` library of Hugging Face reads from disk: an imagefolder, or what `save_to_disk` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pfedst.data.datamodule import FederatedDataModule
from pfedst.data.folder import existing_folder
from pfedst.data.sites import SPLITS, LabelledImages, Sites, Split
from pfedst.data.sources import EncodedSource
from pfedst.errors import DataError, nearest

SAVED = ("dataset_dict.json", "state.json")


class HuggingFaceSites(FederatedDataModule):
    """A `datasets` imagefolder with a column that names the site, or a saved DatasetDict (needs pfedst[datasets]).

    An imagefolder holds `train/` and `test/` (`validation/` is optional), each with its `metadata.csv` (or .jsonl)
    of the columns `file_name`, `label`, `site`, and optionally `group`.

    Args:
        root: the imagefolder, or the folder that `DatasetDict.save_to_disk` wrote; default: PFEDST_DATA_ROOT of the
            environment.
        image_column: of the images.
        label_column: of the classes: names, numbers, or a ClassLabel.
        site_column: of the sites.
        group_column: of patients or lesions; default: `group`, where there is one.
        class_names: in the order of their indices; default: those of a ClassLabel, else all values found, sorted.
        options: those of FederatedDataModule.
    """

    def __init__(
        self,
        root: Path | str | None = None,
        image_column: str = "image",
        label_column: str = "label",
        site_column: str = "site",
        group_column: str | None = None,
        class_names: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root = root
        self.columns = {"image": image_column, "label": label_column, "site": site_column}
        self.group_column = group_column
        self.wanted_classes = class_names

    def read(self) -> Sites:
        """Read every split's table; the images stay where they are."""
        root = existing_folder(self.root, "--data.root")
        self.label = f"Hugging Face data set in {root.name}"
        tables = _splits(root)
        labels = {split: self._labels(root, split, table) for split, table in tables.items()}
        names = list(self.wanted_classes or self._class_names(tables, labels))
        splits: dict[str, dict[Split, LabelledImages]] = {}
        for split, table in tables.items():
            sites = [str(site) for site in table[self.columns["site"]]]
            groups = self._groups(table)
            images = table.cast_column(self.columns["image"], _undecoded())
            image_names = _names(images, self.columns["image"], f"{root.name}, {split}")
            rows: dict[str, list[int]] = {}
            for row, site in enumerate(sites):
                rows.setdefault(site, []).append(row)
            indices = {name: index for index, name in enumerate(names)}
            for row, label in enumerate(labels[split]):
                if label not in indices:
                    raise DataError(
                        f'{root}, {split} row {row}: unknown class "{label}".{nearest(label, names)} '
                        f"Known: {', '.join(names)}"
                    )
            for site, own in rows.items():
                source = EncodedSource(_Reader(images, self.columns["image"], own), [image_names[row] for row in own])
                splits.setdefault(site, {})[split] = LabelledImages(
                    source, [indices[labels[split][row]] for row in own], [groups[row] for row in own]
                )
        return Sites(names, dict(sorted(splits.items())))

    def _labels(self, root: Path, split: str, table: Any) -> list[str]:
        """Class names row by row; the columns are checked here."""
        for purpose, column in self.columns.items():
            if column not in table.column_names:
                raise DataError(
                    f'{root}, {split}: no column "{column}" (found: {", ".join(table.column_names)}); name it with '
                    f"--data.{purpose}_column, or make a manifest with pfedst data init {root}"
                )
        feature = table.features[self.columns["label"]]
        values = table[self.columns["label"]]
        if any(value is None for value in values):
            raise DataError(f"{root}, {split} row {list(values).index(None)}: the label is empty")
        return [feature.names[value] if hasattr(feature, "names") else str(value) for value in values]

    def _class_names(self, tables: dict[Split, Any], labels: dict[Split, list[str]]) -> list[str]:
        features = [table.features[self.columns["label"]] for table in tables.values()]
        if all(hasattr(feature, "names") for feature in features):
            return list(features[0].names)
        return sorted({label for found in labels.values() for label in found})

    def _groups(self, table: Any) -> list[str | None]:
        column = self.group_column or "group"
        if column in table.column_names:
            return [None if group in (None, "") else str(group) for group in table[column]]
        if self.group_column is not None:
            raise DataError(
                f'--data.group_column: no column "{column}".{nearest(column, table.column_names)} '
                f"Found: {', '.join(table.column_names)}"
            )
        return [None] * len(table)


class _Reader:
    """The encoded bytes of chosen rows; a class, so that a process that loads images can be given it."""

    def __init__(self, images: Any, column: str, rows: Sequence[int]) -> None:
        self.images, self.column, self.rows = images, column, rows

    def __call__(self, index: int) -> bytes:
        found = self.images[self.rows[index]][self.column]
        # an imagefolder keeps the path, a saved data set the bytes
        if found["bytes"] is not None:
            return bytes(found["bytes"])
        try:
            return Path(found["path"]).read_bytes()
        except OSError as error:
            raise DataError(f"{found['path']}: {error.strerror}; copy it again") from error


def _splits(root: Path) -> dict[Split, Any]:
    """The tables of `datasets`, by split."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{root}: reading it needs pip install 'pfedst[datasets]'") from error
    datasets.disable_progress_bars()
    try:
        if any((root / name).is_file() for name in SAVED):
            found = datasets.load_from_disk(str(root))
        else:
            # named one by one: left to itself the library drops folders that it does not take for a split
            folders = {split: str(root / split / "**") for split in SPLITS if (root / split).is_dir()}
            if not folders:
                raise DataError(f"{root} holds neither train/ and test/ nor a data set of save_to_disk")
            found = datasets.load_dataset("imagefolder", data_files=folders, cache_dir=None)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{root}: Hugging Face's datasets cannot read it ({error}); make it again") from error
    if not isinstance(found, dict):
        raise DataError(f"{root} holds one split only; save a DatasetDict with train and test")
    if unknown := [name for name in found if name not in SPLITS]:
        raise DataError(f"{root}: split {unknown[0]} is unknown; rename it to one of {', '.join(SPLITS)}")
    return {split: found[split] for split in SPLITS if split in found}


def _names(images: Any, column: str, where: str) -> list[str]:
    """Paths where the table has them; asking for rows would read every image."""
    paths = [path for chunk in images.data.column(column).chunks for path in chunk.field("path").to_pylist()]
    return [f"{where} row {row}" + (f" ({path})" if path else "") for row, path in enumerate(paths)]


def _undecoded() -> Any:
    import datasets

    return datasets.Image(decode=False)
