"""Images in folders SITE/{train,test}/CLASS/*, without a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pfedst.data.datamodule import FederatedDataModule
from pfedst.data.folders import existing_folder, folders, images_in
from pfedst.data.sets.layouts import LAYOUT
from pfedst.data.sites import LabelledImages, Sites, Split, class_order
from pfedst.data.sources import Record
from pfedst.errors import DataError, nearest


class FolderSites(FederatedDataModule):
    """Images in `root/SITE/{train,test}/CLASS/`. A `validation` folder beside them is used if it exists.

    Args:
        root: the folder that holds one folder per site. Default: the environment variable PFEDST_DATA_ROOT.
        site_names: sites to use. Default: all.
        class_names: class folders in the order of their indices. Default: all that are found, sorted.
        options: options of FederatedDataModule.
    """

    def __init__(
        self,
        root: Path | str | None = None,
        site_names: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.root = root
        self.site_names = site_names
        self.wanted_classes = class_names

    def read(self) -> Sites:
        """List the images of all sites."""
        root = existing_folder(self.root, "--data.root")
        self.label = f"images in {root.name}"
        found = folders(root)
        if not found:
            raise DataError(f"{root} holds no folder; {LAYOUT}")
        if {"train", "test"} & set(found):
            raise DataError(f"{root} holds train/test itself; put them into a folder a site: {LAYOUT}")
        sites = list(self.site_names or found)
        for site in sites:
            if site not in found:
                raise DataError(f'{root}: no site "{site}".{nearest(site, found)} Found: {", ".join(found)}')
            self._check_site(root / site)
        classes = list(self.wanted_classes or class_order(c for s in sites for c in self._classes(root / s)))
        return Sites(classes, {site: self._site(root / site, classes) for site in sites}, roots=[root], read_from=root)

    def _check_site(self, folder: Path) -> None:
        for split in ("train", "test"):
            if not (folder / split).is_dir():
                have = ", ".join(folders(folder)) or "no folder"
                raise DataError(f"{folder / split} is missing ({folder} holds: {have}); {LAYOUT}")

    def _classes(self, folder: Path) -> set[str]:
        return {c for split in ("train", "validation", "test") for c in folders(folder / split)}

    def _site(self, folder: Path, classes: Sequence[str]) -> dict[Split, LabelledImages]:
        parts: dict[Split, LabelledImages] = {}
        splits: tuple[Split, ...] = ("train", "validation", "test")
        for split in splits:
            if not (folder / split).is_dir():
                continue
            records = []
            for name in folders(folder / split):
                if name not in classes:
                    raise DataError(
                        f"{folder / split / name}: no class of that name.{nearest(name, classes)} "
                        f"Known: {', '.join(classes)}; rename the folder, or add it to --data.class_names"
                    )
                records += [Record(path, classes.index(name)) for path in images_in(folder / split / name)]
            parts[split] = LabelledImages.from_records(records)
        return parts
