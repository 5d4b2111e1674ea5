"""One look at every image: whether it can be read, its size, its content, and which others it looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfedst.data.audit.alike import find_alike, thumbnail
from pfedst.data.sites import Place, Sites
from pfedst.data.sources import ImageHeader, for_each, listed
from pfedst.errors import DataError


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
        alike: pairs that look like one photograph or two of one thing, with their likeness, likest first; empty where
            images were not compared.
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


def scan(sites: Sites, compare: bool) -> Seen:
    """Open and decode every image once, with progress on a terminal.

    Args:
        sites: read and checked.
        compare: whether images are compared with each other.
    """
    places = [Place(site, split, row) for site, split, part in sites.parts() for row in range(len(part.labels))]

    def look(place: Place) -> tuple[ImageFacts, NDArray[np.uint8] | None]:
        source = sites.splits[place.site][place.split].source
        try:
            image = source.load(place.row)
            facts = ImageFacts(source.header(place.row), source.digest(place.row))
            return facts, thumbnail(image) if compare else None
        except DataError as error:
            return ImageFacts(error=str(error).rsplit(";", 1)[0]), None

    facts, pictures = {}, {}
    for place, (found, picture) in zip(places, for_each(look, places, "checking images"), strict=True):
        facts[place] = found
        if picture is not None:
            pictures[place] = picture
    compared = list(pictures)
    alike = [(compared[a], compared[b], likeness) for a, b, likeness in find_alike(list(pictures.values()))]
    return Seen(facts, alike)
