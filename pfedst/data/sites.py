"""A data set before any transform: sites, splits and labelled images, and their checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from pfedst.data.files import look, outside_message, shown
from pfedst.data.grey_scale import GreyScale, PixelRange
from pfedst.data.sources import EncodedSource, FileSource, ImageSource, JoinedSource, Record, Subset
from pfedst.data.splitting import fold_sites, split_sites, units_of
from pfedst.errors import ConfigurationError, DataError, listed, nearest
from pfedst.names import alike_names, plain_name

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
NEEDED: tuple[Split, ...] = ("train", "test")
"""The splits of which every site of a run has images."""
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""Common names of the splits, in lower case."""


def split_of(text: object) -> Split | None:
    """Return the split of a common name, in any case, or None."""
    return SPLIT_NAMES.get(plain_name(text).lower())


@dataclass(frozen=True)
class LabelledImages:
    """The images of one site and split; `groups` holds None for an image whose patient or lesion is not known."""

    source: ImageSource
    labels: Sequence[int]
    groups: Sequence[str | None] = ()

    def __post_init__(self) -> None:
        if not self.groups:
            object.__setattr__(self, "groups", [None] * len(self.labels))

    @classmethod
    def from_records(cls, records: Sequence[Record]) -> LabelledImages:
        """Make the images of files, ordered by path, so that the order of rows in a manifest changes nothing."""
        ordered = sorted(records, key=lambda record: str(record.path))
        return cls(FileSource([r.path for r in ordered]), [r.label for r in ordered], [r.group for r in ordered])

    @classmethod
    def joined(cls, parts: Sequence[LabelledImages]) -> LabelledImages:
        """Join the images of several splits; files are ordered by path, so that their split changes nothing."""
        labels = [label for part in parts for label in part.labels]
        groups = [group for part in parts for group in part.groups]
        sources = [part.source for part in parts]
        whole = cls(JoinedSource(sources), labels, groups)
        if not all(isinstance(source, FileSource) for source in sources):
            return whole
        paths = [str(path) for path in FileSource.paths_of(whole.source)]
        return whole.subset(sorted(range(len(paths)), key=paths.__getitem__))

    def subset(self, indices: Sequence[int]) -> LabelledImages:
        """Return some of the images, by index."""
        return LabelledImages(
            Subset(self.source, indices), [self.labels[i] for i in indices], [self.groups[i] for i in indices]
        )

    def counts(self, classes: int) -> list[int]:
        """Return the number of images by class."""
        found = [0] * classes
        for label in self.labels:
            found[label] += 1
        return found


class Place(NamedTuple):
    """The place of one image in a data set."""

    site: str
    split: Split
    row: int


@dataclass(frozen=True)
class Sites:
    """The sites of a data set, as a subclass of FederatedDataModule reads them.

    Attributes:
        class_names: in the order of their indices.
        splits: the splits of every site (validation only if the data set has one).
        complete: the remedy for missing files.
        regroup: the remedy for a group that lies in two splits.
        roots: the folders that the user named, in one of which every file must lie; empty for no limit.
        rows: the row of a table that lists a file, for errors.
        read_from: the table or folder that names the sites, for errors.
        pixel_range: grey values that become black and white; None if each file decides.
        left_out: by site, or "" for the data set: the number of files and folders that are not used, by kind.
        respelled: names that are written in several ways and count as one, for the audit.
        test_fraction: share of each class's groups that is drawn to test at each site, in [0, 1); above 0 if the data
            have no test split and all images are in train.
        subgroups: by column of a table, the subgroup of every image file.
    """

    class_names: Sequence[str]
    splits: dict[str, dict[Split, LabelledImages]]
    complete: str = "complete the copy, or correct the paths"
    regroup: str = "give all images of a group to one split"
    roots: Sequence[Path] = ()
    rows: Mapping[Path, str] = field(default_factory=dict)
    read_from: Path | None = None
    pixel_range: PixelRange | None = None
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    respelled: Sequence[str] = ()
    test_fraction: float = 0.0
    subgroups: Mapping[str, Mapping[Path, str]] = field(default_factory=dict)

    def parts(self) -> Iterator[tuple[str, Split, LabelledImages]]:
        """Yield every site and split, in the order of SPLITS."""
        for site, parts in self.splits.items():
            for split in SPLITS:
                if split in parts:
                    yield site, split, parts[split]

    @property
    def _where(self) -> str:
        return f"{self.read_from}: " if self.read_from else ""

    def of_sites(self, names: Sequence[str]) -> Sites:
        """Return these sites alone.

        Raises:
            DataError: there is no such site.
        """
        for name in names:
            if name not in self.splits:
                raise DataError(
                    f'{self._where}there is no site "{name}".{nearest(name, list(self.splits))} There are: '
                    f"{listed(list(self.splits))}"
                )
        return replace(self, splits={site: parts for site, parts in self.splits.items() if site in names})

    def with_all_splits(self) -> Sites:
        """Return the same sites, each with all splits; a split that a site does not have is empty."""
        splits = {
            site: {split: parts.get(split, next(iter(parts.values())).subset([])) for split in SPLITS}
            for site, parts in self.splits.items()
        }
        return replace(self, splits=splits)

    def check_splits(self, needed: Sequence[Split] = NEEDED) -> None:
        """Check that every site has images of the splits that are needed, and any image at all.

        Raises:
            DataError: naming the table or folder, and the site.
        """
        for site, parts in self.splits.items():
            if not any(len(part.labels) for part in parts.values()):
                raise DataError(f'{self._where}site "{site}" has no image; add some, or leave the site out')
            for split in needed:
                if split not in parts or not len(parts[split].labels):
                    have = ", ".join(name for name in SPLITS if name in parts and len(parts[name].labels))
                    raise DataError(
                        f'{self._where}site "{site}" has no {split} image (it has: {have}); add some, or leave the '
                        f"site out.{self._spelling(site)}"
                    )

    def _spelling(self, site: str) -> str:
        """Return the site that a reader takes for the same one, as a question; empty if there is none."""
        alike = [other for names in alike_names(self.splits) for other in names if site in names and other != site]
        return f' Is it "{alike[0]}", written in another way?' if alike else ""

    def check_labels(self) -> None:
        """Check that every class is named once, and that every label has a class.

        Raises:
            DataError: naming the table or folder, and the site.
        """
        if twice := [name for name in self.class_names if list(self.class_names).count(name) > 1]:
            raise DataError(f"{self._where}the class {twice[0]} is named twice; give each class once")
        for site, split, part in self.parts():
            for index, label in enumerate(part.labels):
                if not 0 <= label < len(self.class_names):
                    raise DataError(
                        f'{self._where}site "{site}", {split} image {index}: label {label} is out of range 0 to '
                        f"{len(self.class_names) - 1}"
                    )

    def check_files(self, outside_files: bool = False) -> None:
        """Check that every file exists and lies in the roots.

        Args:
            outside_files: files may lie anywhere.

        Raises:
            DataError: naming the first files that do not.
        """
        paths = [path for _, _, part in self.parts() for path in FileSource.paths_of(part.source)]
        missing, outside = look(paths, () if outside_files else self.roots)
        if outside:
            remedy = "give --data.root a folder that holds all images, or --data.outside_files true if that is meant"
            row = self.rows.get(next(iter(outside)))
            raise DataError(outside_message(outside, self.roots, remedy, f"{row}: " if row else ""))
        if missing:
            told = listed([shown(path, why) for path, why in missing.items()], most=3)
            raise DataError(f"{len(missing):,} of {len(paths):,} images are missing: {told}; {self.complete}")

    def with_patients(self) -> Sites:
        """Return the same sites; an image without a group gets the patient that its file names."""

        def known(part: LabelledImages) -> LabelledImages:
            source = part.source
            if not isinstance(source, FileSource):
                return part
            return replace(part, groups=[group or source.group(index) for index, group in enumerate(part.groups)])

        return replace(self, splits={s: {k: known(p) for k, p in parts.items()} for s, parts in self.splits.items()})

    def with_pixel_range(self, pixel_range: PixelRange | None) -> Sites:
        """Return the same sites, whose grey images of more than 8 bits share one range, or one warning about it.

        Args:
            pixel_range: grey values that become black and white; None if each file decides.

        Raises:
            ConfigurationError: a range is given, and no image is a file.
        """
        grey_scale = GreyScale(pixel_range)
        read = [part.source for _, _, part in self.parts() if isinstance(part.source, FileSource | EncodedSource)]
        if pixel_range is not None and not read:
            raise ConfigurationError("--data.pixel_range has no effect on these images, which are made with 8 bits")

        def scaled(part: LabelledImages) -> LabelledImages:
            source = part.source
            if not isinstance(source, FileSource | EncodedSource):
                return part
            return replace(part, source=replace(source, grey_scale=grey_scale))

        splits = {site: {split: scaled(part) for split, part in parts.items()} for site, parts in self.splits.items()}
        return replace(self, splits=splits, pixel_range=pixel_range)

    def with_classes(self, names: Sequence[str]) -> Sites:
        """Return the same sites with these classes in this order: labels are mapped by the names of classes.

        Args:
            names: the classes of a trained model, in the order of its outputs.

        Raises:
            DataError: images of a class that is not among them.
        """
        if list(names) == list(self.class_names):
            return self
        index = {name: names.index(name) for name in self.class_names if name in names}
        unknown = [name for name in self.class_names if name not in index]
        if unknown:
            raise DataError(
                f"{self._where}the model was trained without the class {listed(unknown)}; it has: "
                f"{listed(list(names))}. Leave its images out, or rename the class"
            )

        def mapped(part: LabelledImages) -> LabelledImages:
            return replace(part, labels=[index[self.class_names[label]] for label in part.labels])

        splits = {site: {split: mapped(part) for split, part in parts.items()} for site, parts in self.splits.items()}
        return replace(self, class_names=list(names), splits=splits)

    def with_test(self, split_seed: int) -> Sites:
        """Return the same sites, with test drawn from train by groups if the data have no test split.

        Args:
            split_seed: of the draw.
        """
        if not self.test_fraction:
            return self
        whole = {site: parts["train"] for site, parts in self.splits.items()}
        tables = {site: (train.labels, train.groups) for site, train in whole.items()}
        splits: dict[str, dict[Split, LabelledImages]] = {
            site: {"train": whole[site].subset(kept), "test": whole[site].subset(cut)}
            for site, (kept, cut) in split_sites(tables, self.test_fraction, split_seed, "test", fewest=1).items()
        }
        return replace(self, splits=splits)

    def with_fold(self, folds: int, fold: int, split_seed: int) -> Sites:
        """Return the same sites, with all images of a site dealt over folds: one fold is test, the others are train.

        Args:
            folds: number of folds, 2 or more.
            fold: the fold that is test, from 0.
            split_seed: of the draw.

        Raises:
            DataError: a site has fewer units than folds, or nothing but groups of other sites for a fold.
        """
        whole = {site: LabelledImages.joined(list(parts.values())) for site, parts in self.splits.items()}
        for site, images in whole.items():
            if (units := len(units_of(images.groups))) < folds:
                raise DataError(
                    f'{self._where}site "{site}" has {units} patients, lesions or images without either, fewer than '
                    f"--data.folds {folds}; take fewer folds, or leave the site out"
                )
        dealt = fold_sites({site: (images.labels, images.groups) for site, images in whole.items()}, folds, split_seed)
        for site, of_image in dealt.items():
            if empty := sorted(set(range(folds)) - set(of_image)):
                raise DataError(
                    f'{self._where}site "{site}" has no image in fold {empty[0]} of {folds}, as its groups have images '
                    f"at other sites too; take fewer folds, another --data.split_seed, or leave the site out"
                )
        splits: dict[str, dict[Split, LabelledImages]] = {
            site: {
                "train": whole[site].subset([index for index, of in enumerate(of_image) if of != fold]),
                "test": whole[site].subset([index for index, of in enumerate(of_image) if of == fold]),
            }
            for site, of_image in dealt.items()
        }
        return replace(self, splits=splits, test_fraction=0.0)

    def rare_classes(self, folds: int) -> dict[str, list[str]]:
        """Return the classes of each site that have fewer units than folds: they are absent from some test folds."""
        found: dict[str, list[str]] = {}
        for site, parts in self.splits.items():
            images = LabelledImages.joined(list(parts.values()))
            units = Counter(images.labels[members[0]] for members in units_of(images.groups))
            if rare := [self.class_names[label] for label, number in sorted(units.items()) if number < folds]:
                found[site] = rare
        return found

    def with_validation(self, fraction: float, split_seed: int) -> Sites:
        """Return the same sites, with validation cut from train at sites that have none.

        Args:
            fraction: share of train, in [0, 1).
            split_seed: of the cut.
        """
        whole = {
            site: parts["train"]
            for site, parts in self.splits.items()
            if "validation" not in parts and "train" in parts  # a site that is only evaluated may have no train
        }
        tables = {site: (train.labels, train.groups) for site, train in whole.items()}
        splits = dict(self.splits)
        for site, (kept, cut) in split_sites(tables, fraction, split_seed, "validation").items():
            new: dict[Split, LabelledImages] = {
                "train": whole[site].subset(kept),
                "validation": whole[site].subset(cut),
            }
            splits[site] = splits[site] | new
        return replace(self, splits=splits)


def class_order(names: Iterable[str]) -> list[str]:
    """Return each name once, sorted; numbers are sorted by their value."""
    return sorted(set(names), key=lambda name: (0, int(name), name) if _is_number(name) else (1, 0, name))


def _is_number(text: str) -> bool:
    """Return True if a text can be an index; Python refuses to read numbers of thousands of digits."""
    return text.isdecimal() and len(text) < 20


def class_index(where: str, label: str, classes: Sequence[str], given: bool) -> int:
    """Return the index of a label.

    Args:
        where: the row, for the error.
        label: a class name; or an index, if the user gave the classes in their order.
        classes: all names.
        given: True if the user gave the classes.

    Raises:
        DataError: no such class.
    """
    if label in classes:
        return classes.index(label)
    if given and _is_number(label.removeprefix("-")):
        if 0 <= int(label) < len(classes):
            return int(label)
        raise DataError(f"{where}: label {label} is out of range 0 to {len(classes) - 1}")
    raise DataError(f'{where}: unknown class "{label}".{nearest(label, classes)} Known: {", ".join(classes)}')
