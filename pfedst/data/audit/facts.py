"""What was seen of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from pfedst.data.sites import LabelledImages, Place, Sites, Split
from pfedst.data.sources import ImageHeader, content_digest
from pfedst.errors import DataError, listed


@dataclass(frozen=True)
class ImageFacts:
    """What was seen of one image; `error` in place of the rest where it cannot be read."""

    header: ImageHeader | None = None
    digest: str = ""
    error: str | None = None


@dataclass(frozen=True)
class Seen:
    """What was seen of all images.

    Attributes:
        facts: of every image.
        alike: pairs of different files that look like one photograph or two of one thing, with their likeness, likest
            first; empty where images were not compared.
    """

    facts: Mapping[Place, ImageFacts]
    alike: Sequence[tuple[Place, Place, float]] = ()

    def refuse_unreadable(self) -> None:
        """Raises if an image cannot be read.

        Raises:
            DataError: all bad files at once, the first ten by name.
        """
        if faults := [found.error for found in self.facts.values() if found.error]:
            raise DataError(
                f"{len(faults)} of {len(self.facts)} images cannot be read:\n  "
                + listed(faults, "\n  ")
                + "\nRemove them (and their rows), or copy them again; nothing was trained."
            )


def image_digests(site: str, split: Split, part: LabelledImages, seen: Seen | None) -> list[str]:
    """Return 32 hexadecimal digits of each image of a split.

    Args:
        site: the site.
        split: the split.
        part: its images.
        seen: of `scan`: images are hashed by their content; without, by the last part of their names.
    """
    if seen is not None:
        return [seen.facts[Place(site, split, row)].digest for row in range(len(part.labels))]
    return [content_digest(PurePath(part.source.name(row)).name.encode()) for row in range(len(part.labels))]


def fingerprint(sites: Sites, seen: Seen | None) -> str:
    """32 hexadecimal digits of all sites, splits, classes, labels and images.

    Args:
        sites: the data.
        seen: of `scan`: images are told by their content; without, by the last part of their names.
    """
    lines = [repr(list(sites.class_names))]
    for site, split, part in sites.parts():
        for row, label in enumerate(part.labels):
            known = seen.facts[Place(site, split, row)].digest if seen else PurePath(part.source.name(row)).name
            lines.append(f"{site}|{split}|{label}|{known}")
    return content_digest("\n".join(lines).encode())
