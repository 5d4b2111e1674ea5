"""What a data set is before any transform: sites, their splits, their labelled images; and the checks of these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, get_args

from pfedst.data.sources import FileSource, ImageSource, Record, Subset, absent, listed
from pfedst.data.splitting import split_groups
from pfedst.errors import DataError
from pfedst.seeds import derive_seed

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class LabelledImages:
    """Images of one site and split; `groups` holds None for an image whose patient or lesion is not known."""

    source: ImageSource
    labels: Sequence[int]
    groups: Sequence[str | None] = ()

    def __post_init__(self) -> None:
        if not self.groups:
            object.__setattr__(self, "groups", [None] * len(self.labels))

    @classmethod
    def from_records(cls, records: Sequence[Record]) -> LabelledImages:
        """From files, ordered by path, so that the order of rows in a manifest changes nothing."""
        ordered = sorted(records, key=lambda record: str(record.path))
        return cls(FileSource([r.path for r in ordered]), [r.label for r in ordered], [r.group for r in ordered])

    def subset(self, indices: Sequence[int]) -> LabelledImages:
        """Some of them."""
        return LabelledImages(
            Subset(self.source, indices), [self.labels[i] for i in indices], [self.groups[i] for i in indices]
        )

    def counts(self, classes: int) -> list[int]:
        """Number of images a class."""
        found = [0] * classes
        for label in self.labels:
            found[label] += 1
        return found


class Place(NamedTuple):
    """One image: where it is."""

    site: str
    split: Split
    row: int


@dataclass(frozen=True)
class Sites:
    """What a subclass of FederatedDataModule reads.

    Attributes:
        class_names: in the order of their indices.
        splits: the splits of every site (validation only if it is given).
        complete: what a user does about files that are missing.
        regroup: what a user does about a group that lies in two splits.
    """

    class_names: Sequence[str]
    splits: dict[str, dict[Split, LabelledImages]]
    complete: str = field(default="complete the copy, or correct the paths")
    regroup: str = field(default="give all images of a group to one split")

    def parts(self) -> Iterator[tuple[str, Split, LabelledImages]]:
        """Every site and split, in the order of SPLITS."""
        for site, parts in self.splits.items():
            for split in SPLITS:
                if split in parts:
                    yield site, split, parts[split]

    def check_labels(self) -> None:
        """Every site can train and be tested, and every label has a class.

        Raises:
            DataError: naming the site.
        """
        needed: tuple[Split, ...] = ("train", "test")
        for site, parts in self.splits.items():
            for split in needed:
                if split not in parts or not len(parts[split].labels):
                    have = ", ".join(name for name in SPLITS if name in parts and len(parts[name].labels)) or "nothing"
                    raise DataError(
                        f'site "{site}" has no {split} image (it has: {have}); add some, or leave the site out'
                    )
        for site, split, part in self.parts():
            for index, label in enumerate(part.labels):
                if not 0 <= label < len(self.class_names):
                    raise DataError(
                        f'site "{site}", {split} image {index}: label {label} is out of range 0 to '
                        f"{len(self.class_names) - 1}"
                    )

    def check_files(self) -> None:
        """Every file is there.

        Raises:
            DataError: naming the first that are not.
        """
        paths = [path for _, _, part in self.parts() for path in FileSource.paths_of(part.source)]
        if missing := absent(paths):
            raise DataError(
                f"{len(missing):,} of {len(paths):,} images are missing: {listed(missing, most=3)}; {self.complete}"
            )

    def with_patients(self) -> Sites:
        """The same, with the patient that a file itself names as the group of an image that has none."""

        def known(part: LabelledImages) -> LabelledImages:
            source = part.source
            if not isinstance(source, FileSource):
                return part
            return replace(part, groups=[group or source.group(index) for index, group in enumerate(part.groups)])

        return replace(self, splits={s: {k: known(p) for k, p in parts.items()} for s, parts in self.splits.items()})

    def with_validation(self, fraction: float, split_seed: int) -> Sites:
        """The same, with validation cut from train where a site has none of its own.

        Args:
            fraction: share of train, in [0, 1).
            split_seed: of the cut.
        """
        splits = {}
        for site, parts in self.splits.items():
            if "validation" not in parts:
                train, seed = parts["train"], derive_seed(split_seed, "validation", site)
                kept, cut = split_groups(train.labels, train.groups, fraction, seed)
                parts = parts | {"train": train.subset(kept), "validation": train.subset(cut)}
            splits[site] = parts
        return replace(self, splits=splits)
