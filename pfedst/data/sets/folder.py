"""Images in folders SITE/{train,test}/CLASS/*, without a manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pfedst.data.datamodule import FederatedDataModule
from pfedst.data.folders import existing_folder, folders, images_in, named_folders
from pfedst.data.left_out import left_out
from pfedst.data.sets.layouts import LAYOUT
from pfedst.data.sites import SPLITS, LabelledImages, Sites, Split, class_order, split_of
from pfedst.data.sources import FileSource, Record
from pfedst.errors import DataError, nearest
from pfedst.names import plain_names, respelled

Classes = dict[str, list[Path]]
"""Folders of images by the name of their class."""


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
        self.site_names = plain_names(site_names or [])
        self.wanted_classes = plain_names(class_names or [])

    def read(self) -> Sites:
        """List the images of all sites."""
        root = existing_folder(self.root, "--data.root")
        self.label = f"images in {root.name}"
        found = named_folders(root)
        if not found:
            raise DataError(f"{root} holds no folder; {LAYOUT}")
        if {"train", "test"} & set(found):
            raise DataError(f"{root} holds train/test itself; put them into one folder per site: {LAYOUT}")
        tree: dict[str, dict[Split, Classes]] = {}
        for site in self.site_names or found:
            if site not in found:
                raise DataError(f'{root}: no site "{site}".{nearest(site, found)} Found: {", ".join(found)}')
            tree[site] = _splits(found[site], self.needed_splits)
        classes = self.wanted_classes or class_order(
            name for parts in tree.values() for part in parts.values() for name in part
        )
        splits = {site: {s: _images(part, classes) for s, part in parts.items()} for site, parts in tree.items()}
        used = [path for of in splits.values() for part in of.values() for path in FileSource.paths_of(part.source)]
        return Sites(
            classes,
            splits,
            roots=[root],
            read_from=root,
            left_out=_left_out(root, {site: found[site] for site in tree}, set(used)),
            respelled=[*respelled("site", _written(found)), *_respelled_classes(tree)],
        )


def _splits(site_folders: Sequence[Path], needed: Sequence[Split]) -> dict[Split, Classes]:
    """Return the class folders of every split of a site; the needed ones must be there."""
    found: dict[Split, Classes] = {}
    for site_folder in site_folders:
        for name, split_folders in named_folders(site_folder).items():
            if (split := split_of(name)) is not None:
                part = found.setdefault(split, {})
                for folder in split_folders:
                    for label, class_folders in named_folders(folder).items():
                        part.setdefault(label, []).extend(class_folders)
    for split in needed or (() if found else ("test",)):
        if split not in found:
            first = site_folders[0]
            have = ", ".join(folders(first)) or "no folder"
            raise DataError(
                f"{first / split} is missing ({first} holds: {have}); {LAYOUT}. For folders without train and test "
                f"pfedst data init {first.parent} writes a table that pfedst reads"
            )
    return {split: found[split] for split in SPLITS if split in found}


def _images(part: Classes, classes: Sequence[str]) -> LabelledImages:
    records = []
    for name, class_folders in part.items():
        if name not in classes:
            raise DataError(
                f"{class_folders[0]}: no class of that name.{nearest(name, classes)} "
                f"Known: {', '.join(classes)}; rename the folder, or add it to --data.class_names"
            )
        records += [Record(path, classes.index(name)) for folder in class_folders for path in images_in(folder)]
    return LabelledImages.from_records(records)


def _left_out(root: Path, sites: Mapping[str, Sequence[Path]], used: Collection[Path]) -> dict[str, Counter[str]]:
    found = {"": left_out([root], used, below=False)}
    found |= {site: left_out(site_folders, used) for site, site_folders in sites.items()}
    return {place: counts for place, counts in found.items() if counts}


def _written(named: Mapping[str, Sequence[Path]]) -> dict[str, set[str]]:
    return {name: {folder.name for folder in found} for name, found in named.items()}


def _respelled_classes(tree: Mapping[str, Mapping[Split, Classes]]) -> list[str]:
    written: dict[str, set[str]] = {}
    for parts in tree.values():
        for part in parts.values():
            for name, spellings in _written(part).items():
                written.setdefault(name, set()).update(spellings)
    return respelled("class", written)
