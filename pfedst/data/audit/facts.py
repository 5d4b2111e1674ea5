"""The results of a scan of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from pfedst.data.decoding import ImageHeader
from pfedst.data.limits import REMEDY_FOR_MANY
from pfedst.data.sites import LabelledImages, Place, Sites, Split
from pfedst.data.sources import content_digest
from pfedst.errors import DataError, listed


@dataclass(frozen=True)
class ImageFacts:
    """Result for one image. If the image cannot be read, only `error` is set.

    `guessed` is True if its own smallest and largest value became black and white.
    """

    header: ImageHeader | None = None
    digest: str = ""
    error: str | None = None
    guessed: bool = False


@dataclass(frozen=True)
class Seen:
    """Results for all images.

    Attributes:
        facts: result for each image.
        alike: pairs of different files that look like one photograph or two photographs of one object, with their
            likeness, the most similar first; empty if images were not compared.
    """

    facts: Mapping[Place, ImageFacts]
    alike: Sequence[tuple[Place, Place, float]] = ()

    def refuse_unreadable(self) -> None:
        """Raise an error if an image cannot be read.

        Raises:
            DataError: If there are such images. The message counts all and names the first ten.
        """
        if faults := [found.error for found in self.facts.values() if found.error]:
            raise DataError(
                f"{len(faults)} of {len(self.facts)} images cannot be read:\n  "
                + listed(faults, "\n  ")
                + f"\n{REMEDY_FOR_MANY.capitalize()}; nothing was trained."
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
    """Return 32 hexadecimal digits for all sites, splits, classes, labels and images.

    Args:
        sites: the data.
        seen: result of `scan`, to identify images by their content; without it they are identified by the last part of
            their names.
    """
    lines = [repr(list(sites.class_names))]
    for site, split, part in sites.parts():
        for row, label in enumerate(part.labels):
            known = seen.facts[Place(site, split, row)].digest if seen else PurePath(part.source.name(row)).name
            lines.append(f"{site}|{split}|{label}|{known}")
    return content_digest("\n".join(lines).encode())
