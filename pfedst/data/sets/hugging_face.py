"""Images that the Hugging Face `datasets` library reads from disk: an imagefolder, or the output of `save_to_disk`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pfedst.data.datamodule import FederatedDataModule
from pfedst.data.folders import existing_folder, folders
from pfedst.data.sets.columns import SINGLE_LABEL
from pfedst.data.sets.layouts import SAVED
from pfedst.data.sites import SPLIT_NAMES, SPLITS, LabelledImages, Sites, Split, class_index, class_order
from pfedst.data.sources import EncodedSource
from pfedst.data.tables import check_parquet, check_size
from pfedst.errors import DataError, nearest
from pfedst.names import plain_name, plain_names, respelled


class HuggingFaceSites(FederatedDataModule):
    """A `datasets` imagefolder with a column for the site, or a saved DatasetDict (needs pfedst[datasets]).

    An imagefolder holds `train/` and `test/` (`validation/` is optional). Each has a `metadata.csv` (or .jsonl) with
    the columns `file_name`, `label`, `site`, and optionally `group`.

    Args:
        root: the imagefolder, or the folder that `DatasetDict.save_to_disk` wrote. Default: the environment variable
            PFEDST_DATA_ROOT.
        image_column: column of the images.
        label_column: column of the classes: names, numbers, or a ClassLabel.
        site_column: column of the sites.
        group_column: column of patients or lesions. Default: `group`, if it exists.
        class_names: names of the classes in the order of their indices. Default: those of a ClassLabel, otherwise all
            values found, sorted.
        options: options of FederatedDataModule.
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
        self.wanted_classes = plain_names(class_names or [])

    def read(self) -> Sites:
        """Read the table of every split. Images are not copied."""
        root = existing_folder(self.root, "--data.root")
        self.label = f"Hugging Face data set in {root.name}"
        tables = _splits(root)
        for split, table in tables.items():
            self._check_columns(f"{root}, {split}", table)
        written = {split: self._texts(f"{root}, {split}", table) for split, table in tables.items()}
        texts = {split: {kind: plain_names(of) for kind, of in found.items()} for split, found in written.items()}
        names = self.wanted_classes or self._class_names(tables, texts)
        given = bool(self.wanted_classes)
        splits: dict[str, dict[Split, LabelledImages]] = {}
        for split, table in tables.items():
            where = f"{root}, {split}"
            labels = [
                class_index(f"{where} row {row}", label, names, given)
                for row, label in enumerate(texts[split]["label"])
            ]
            groups, images = self._groups(where, table), table.cast_column(self.columns["image"], _undecoded())
            image_names, files = _names_and_files(images, self.columns["image"], where)
            rows: dict[str, list[int]] = {}
            for row, site in enumerate(texts[split]["site"]):
                rows.setdefault(site, []).append(row)
            for site, own in rows.items():
                reader = _Reader(images, self.columns["image"], own)
                source = EncodedSource(reader, [image_names[row] for row in own], [files[row] for row in own])
                part = LabelledImages(source, [labels[row] for row in own], [groups[row] for row in own])
                splits.setdefault(site, {})[split] = part
        return Sites(
            names,
            dict(sorted(splits.items())),
            roots=[root, _unpacked()],
            read_from=root,
            respelled=[*_respelled("class", "label", written), *_respelled("site", "site", written)],
        )

    def _check_columns(self, where: str, table: Any) -> None:
        import datasets

        for purpose, column in self.columns.items():
            if column not in table.column_names:
                raise DataError(
                    f'{where}: no column "{column}".{nearest(column, table.column_names)} Found: '
                    f"{', '.join(table.column_names)}; name it with --data.{purpose}_column, or make a manifest with "
                    f"pfedst data init"
                )
            if (purpose == "image") != isinstance(table.features[column], datasets.Image):
                kind = "holds no images" if purpose == "image" else "holds images"
                raise DataError(f'{where}: --data.{purpose}_column "{column}" {kind}; name another column')

    def _texts(self, where: str, table: Any) -> dict[str, list[str]]:
        """Return class and site of every row, as they are written."""
        found = {}
        for purpose in ("label", "site"):
            column = self.columns[purpose]
            names = getattr(table.features[column], "names", None)
            values = _values(where, table, column)
            for row, value in enumerate(values):
                if isinstance(value, list):
                    raise DataError(f"{where} row {row}: multi-label: the {purpose} is a list; {SINGLE_LABEL}")
                # the library uses -1 of a ClassLabel for no label
                if value is None or plain_name(value) == "" or (names is not None and value < 0):
                    hint = " (is its metadata file there?)" if all(v is None for v in values) else ""
                    raise DataError(f"{where} row {row}: the {purpose} is empty{hint}; fill it in, or remove the row")
                if names is not None and value >= len(names):
                    raise DataError(f"{where} row {row}: {purpose} {value} has no name (there are {len(names)})")
            found[purpose] = [str(value) if names is None else names[value] for value in values]
        return found

    def _class_names(self, tables: dict[Split, Any], texts: dict[Split, dict[str, list[str]]]) -> list[str]:
        features = [table.features[self.columns["label"]] for table in tables.values()]
        if all(hasattr(feature, "names") for feature in features):
            return plain_names(features[0].names)
        return class_order(label for found in texts.values() for label in found["label"])

    def _groups(self, where: str, table: Any) -> list[str | None]:
        column = self.group_column or "group"
        if column in table.column_names:
            return [None if group is None else plain_name(group) or None for group in _values(where, table, column)]
        if self.group_column is not None:
            raise DataError(
                f'{where}: --data.group_column: no column "{column}".{nearest(column, table.column_names)} '
                f"Found: {', '.join(table.column_names)}"
            )
        return [None] * len(table)


def _respelled(kind: str, purpose: str, written: dict[Split, dict[str, list[str]]]) -> list[str]:
    spellings: dict[str, set[str]] = {}
    for found in written.values():
        for text in found[purpose]:
            spellings.setdefault(plain_name(text), set()).add(text)
    return respelled(kind, spellings)


class _Reader:
    """Read the encoded bytes of chosen rows. A class, so that it can be sent to a worker process."""

    def __init__(self, images: Any, column: str, rows: Sequence[int]) -> None:
        self.images, self.column, self.rows = images, column, rows

    def __call__(self, index: int) -> bytes:
        found = self.images[self.rows[index]][self.column]
        # an imagefolder keeps the path, a saved data set the bytes
        if found["bytes"] is not None:
            return bytes(found["bytes"])
        path = Path(found["path"])
        try:
            if path.exists() and not path.is_file():  # a pipe would be waited for, a device never end
                raise DataError(f"{path}: not a file; correct the path")
            return path.read_bytes()
        except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
            raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}; copy it again") from error


def _values(where: str, table: Any, column: str) -> list[Any]:
    """Return a column. The library does not check text columns before they are read."""
    try:
        return list(table[column])
    except ValueError as error:  # pyarrow's errors, and text that is not UTF-8
        raise DataError(f'{where}: the column "{column}" cannot be read ({error}); make it again') from error


def _splits(root: Path) -> dict[Split, Any]:
    """Return the `datasets` tables by split."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{root}: reading it needs pip install 'pfedst[datasets]'") from error
    datasets.disable_progress_bars()
    try:
        if any((root / name).is_file() for name in SAVED):
            found = datasets.load_from_disk(str(root))
        else:
            # each split is named: by default the library ignores folders that it does not recognise as a split
            found = datasets.load_dataset("imagefolder", data_files=_patterns(root))
    except DataError:
        raise
    except Exception as error:  # the library raises many kinds for damaged files
        file = getattr(error, "filename", None)
        reason = f"{error.strerror}: {file}" if file and isinstance(error, OSError) else str(error) or repr(error)
        message = " ".join(reason.split())
        raise DataError(f"{root}: Hugging Face's datasets cannot read it ({message}); make it again") from error
    if not isinstance(found, dict):
        raise DataError(f"{root} holds one split only; save a DatasetDict with train and test")
    if unknown := [name for name in found if name not in SPLITS]:
        raise DataError(f"{root}: split {unknown[0]} is unknown; rename it to one of {', '.join(SPLITS)}")
    return {split: found[split] for split in SPLITS if split in found}


def _patterns(root: Path) -> dict[str, str]:
    """Return the file pattern of every split of an imagefolder."""
    for name in folders(root):
        if name not in SPLITS and name.lower() in SPLIT_NAMES:
            raise DataError(f"{root / name}: rename it to {SPLIT_NAMES[name.lower()]}")
    found: dict[str, str] = {split: str(root / split / "**") for split in SPLITS if (root / split).is_dir()}
    for split in found:
        for file in (root / split).rglob("metadata.*"):
            check_size(file)
            if file.suffix == ".parquet":
                check_parquet(file)
    if not found:
        raise DataError(f"{root} holds neither train/ and test/ nor a data set of save_to_disk")
    return found


def _names_and_files(images: Any, column: str, where: str) -> tuple[list[str], list[Path | None]]:
    """Return image names, with paths if the table has them, and the files of images outside the table.

    Columns are read, since reading rows would read every image.
    """
    cells = [cell for chunk in images.data.column(column).chunks for cell in _paths_and_bytes(chunk)]
    for row, (path, held) in enumerate(cells):
        if not path and not held:
            raise DataError(f"{where} row {row}: the image is empty; remove the row, or give its file")
        if path and not held and "://" in path:
            raise DataError(f"{where} row {row}: {path} is in an archive; unpack it, and remove the archive")
    names = [f"{where} row {row}" + (f" ({path})" if path else "") for row, (path, _) in enumerate(cells)]
    return names, [None if held else Path(str(path)) for path, held in cells]


def _paths_and_bytes(chunk: Any) -> list[tuple[str | None, bool]]:
    """Return the path of each image and True if the table holds its bytes; (None, False) for a missing image."""
    paths, held = chunk.field("path").to_pylist(), chunk.field("bytes").is_valid().to_pylist()
    valid = chunk.is_valid().to_pylist()
    return [(path, has) if ok else (None, False) for path, has, ok in zip(paths, held, valid, strict=True)]


def _unpacked() -> Path:
    """Return the folder into which the library unpacks the archives of an imagefolder."""
    import datasets

    return Path(datasets.config.EXTRACTED_DATASETS_PATH)


def _undecoded() -> Any:
    import datasets

    return datasets.Image(decode=False)
