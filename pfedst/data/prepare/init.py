"""Write a manifest for any folder tree with images. The user then checks the manifest."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from pfedst.data.files import refuse_outside
from pfedst.data.folders import is_hidden, is_image
from pfedst.data.left_out import left_out
from pfedst.data.sites import SPLITS, class_order, split_of
from pfedst.data.sources import FileSource
from pfedst.data.splitting import split_sites
from pfedst.errors import ConfigurationError, DataError, listed
from pfedst.names import plain_name, plain_names

LEVELS = ("site", "split", "label", "group", "-")


@dataclass(frozen=True)
class InitOptions:
    """How folder and file names are interpreted.

    Args:
        layout: meaning of each folder level, such as `site/split/label` or `split/label/group`; `-` marks a level
            without meaning. Default: guessed from the names.
        group_pattern: a regular expression with one group, searched in the path below the folder. The match is the
            patient or lesion, such as `(\\d+)_(?:left|right)`. DICOM files name their patient themselves.
        test_fraction: share of each class's groups that goes to test at each site, in (0, 1), if no folder is named
            train or test.
        seed: seed of that draw.

    Raises:
        ConfigurationError: If an option is invalid.
    """

    layout: str | None = None
    group_pattern: str | None = None
    test_fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.test_fraction < 1:
            raise ConfigurationError(f"--test_fraction {self.test_fraction}: must be above 0 and below 1")
        levels = self.levels or []
        if unknown := [level for level in levels if level not in LEVELS]:
            raise ConfigurationError(f'--layout: "{unknown[0]}" is none of {", ".join(LEVELS)}')
        if levels and (levels.count("label") != 1 or any(levels.count(n) > 1 for n in ("site", "split", "group"))):
            raise ConfigurationError(f"--layout {self.layout}: give label once, and no other level twice")
        try:
            groups = re.compile(self.group_pattern).groups if self.group_pattern is not None else 1
        except re.error as error:
            raise ConfigurationError(f"--group_pattern {self.group_pattern}: {error}") from error
        if groups != 1:
            raise ConfigurationError(f"--group_pattern {self.group_pattern}: needs one group in parentheses")

    @property
    def levels(self) -> list[str] | None:
        """Levels of the layout, or None if they are guessed."""
        return self.layout.strip("/").split("/") if self.layout is not None else None


class Made(NamedTuple):
    """A manifest and what is to be known of it.

    Attributes:
        table: one row for each image: `path, label, site, split, group`.
        levels: the meaning of each level of folders.
        left_out: number of files and folders that are not used, by kind.
    """

    table: pd.DataFrame
    levels: list[str]
    left_out: Mapping[str, int]


def make_manifest(folder: Path, options: InitOptions, outside_files: bool = False) -> Made:
    """Return the table `path, label, site, split, group` of all images below a folder.

    Args:
        folder: folder with the images.
        options: how names are interpreted.
        outside_files: True if links to files may lead out of the folder.

    Raises:
        DataError: If there is no image, folders differ in depth, the layout does not fit, or a link leads out.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder with the images")
    images = _images_below(folder)
    if not images:
        raise DataError(f"{folder}: no image in it or below it; give the folder with the images")
    if not outside_files:
        refuse_outside((folder / path for path in images), folder)
    depths = {len(path.parts): path for path in images}
    if len(depths) > 1:
        shallow, deep = depths[min(depths)], depths[max(depths)]
        raise DataError(
            f"{folder}: images are at different depths ({shallow}, {deep}); move them to the same depth, "
            f"or run init on a part"
        )
    names = [path.parts[:-1] for path in images]
    levels = options.levels or _guess(folder, names)
    if len(levels) != len(names[0]):
        raise DataError(
            f"{folder}: --layout {'/'.join(levels)} has {len(levels)} levels, {images[0]} has {len(names[0])} folders"
        )
    table = pd.DataFrame({"path": [path.as_posix() for path in images]})
    for column in ("label", "site", "split", "group"):
        at = levels.index(column) if column in levels else None
        table[column] = plain_names(parts[at] for parts in names) if at is not None else ""
    if "site" not in levels:
        table["site"] = plain_name(folder.resolve().name)
    if "split" in levels:
        if unknown := sorted({name for name in table["split"] if split_of(name) is None}):
            raise DataError(f"{folder}: {listed(unknown)} is no split; use folders called {', '.join(SPLITS)}")
        table["split"] = table["split"].map(split_of)
    if "group" not in levels:
        table["group"] = [_group(folder, path, options.group_pattern) for path in images]
    if "split" not in levels:
        table["split"] = _drawn(table, options)
    return Made(table, levels, left_out([folder], {folder / path for path in images}))


def _images_below(folder: Path) -> list[Path]:
    """Return sorted paths relative to the folder. Hidden entries are skipped, links to folders are not followed."""
    found = []
    for place, inside, files in os.walk(folder):
        inside[:] = sorted(name for name in inside if not is_hidden(name))
        paths = [Path(place, name) for name in files if not is_hidden(name)]
        found += [path.relative_to(folder) for path in paths if is_image(path)]
    for path in found:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            name = FileSource([folder / path]).name(0)
            raise DataError(f"{name}: the name is not valid text; rename it") from error
    return sorted(found)


def _guess(folder: Path, names: Sequence[Sequence[str]]) -> list[str]:
    """Guess the meaning of the levels.

    A level of split names is the split. Of the other levels the last one is the class and the one before it the site.
    """
    depth = len(names[0])
    values = [{parts[level] for parts in names} for level in range(depth)]
    levels = ["split" if all(split_of(name) is not None for name in found) else "" for found in values]
    left = [level for level in range(depth) if not levels[level]]
    if levels.count("split") > 1 or not 1 <= len(left) <= 2:
        example = "/".join(names[0]) or "no folder"
        raise DataError(
            f"{folder}: the meaning of its folders cannot be guessed (the first image is in {example}); "
            f"give it with --layout, such as site/split/label or label/group"
        )
    for level, meaning in zip(reversed(left), ("label", "site"), strict=False):
        levels[level] = meaning
    return levels


def _group(folder: Path, path: Path, pattern: str | None) -> str:
    found = re.search(pattern, path.as_posix()) if pattern is not None else None
    return plain_name((found and found.group(1)) or FileSource([folder / path]).group(0) or "")


def _drawn(table: pd.DataFrame, options: InitOptions) -> list[str]:
    """Draw train and test for each site, stratified by class, with no group in both, and at least one group in test."""
    split = ["train"] * len(table)
    names = class_order(table["label"])
    rows = {str(site): list(map(int, indices)) for site, indices in table.groupby("site").indices.items()}
    labels = [names.index(label) for label in table["label"]]
    groups = [group or None for group in table["group"]]
    sites = {site: ([labels[row] for row in of], [groups[row] for row in of]) for site, of in rows.items()}
    for site, (_, test) in split_sites(sites, options.test_fraction, options.seed, "test", fewest=1).items():
        for index in test:
            split[rows[site][index]] = "test"
    return split
