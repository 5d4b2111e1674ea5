"""Scan every image once: readability, size, content, and similarity to other images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfedst.data.audit.alike import find_alike, thumbnail
from pfedst.data.audit.facts import ImageFacts, Seen
from pfedst.data.audit.memory import memory_file, recall, remember
from pfedst.data.grey_scale import noted_guesses
from pfedst.data.limits import without_remedy
from pfedst.data.sites import Place, Sites
from pfedst.data.threads import for_each
from pfedst.errors import DataError


def scan(sites: Sites, compare: bool, folder: Path | None = None) -> Seen:
    """Open and decode every image once, with progress on a terminal.

    Args:
        sites: sites, read and checked.
        compare: True to compare images with each other.
        folder: folder where results are saved, so that unchanged files are not opened again.
    """
    places = [Place(site, split, row) for site, split, part in sites.parts() for row in range(len(part.labels))]
    file = memory_file(sites, compare, folder) if folder is not None else None
    if file is not None and (kept := recall(file, places)) is not None:
        return kept
    seen = _look(sites, places, compare)
    # a damaged file may be repaired without a change of size and time, so it is scanned again
    if file is not None and not any(found.error for found in seen.facts.values()):
        remember(file, seen)
    return seen


def _look(sites: Sites, places: Sequence[Place], compare: bool) -> Seen:
    def look(place: Place) -> tuple[ImageFacts, NDArray[np.uint8] | None]:
        source = sites.splits[place.site][place.split].source
        try:
            with noted_guesses() as guesses:
                image = source.load(place.row)
            facts = ImageFacts(source.header(place.row), source.digest(place.row), guessed=bool(guesses))
            return facts, thumbnail(image) if compare else None
        except DataError as error:
            return ImageFacts(error=without_remedy(error)), None

    facts, pictures = {}, {}
    digests: set[str] = set()
    for place, (found, picture) in zip(places, for_each(look, places, "checking images"), strict=True):
        facts[place] = found
        if picture is not None and found.digest not in digests:  # identical files are found by their digest
            pictures[place] = picture
            digests.add(found.digest)
    compared = list(pictures)
    alike = [(compared[a], compared[b], likeness) for a, b, likeness in find_alike(list(pictures.values()))]
    return Seen(facts, alike)
