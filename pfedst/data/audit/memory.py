"""Save the result of a scan of image files on disk, so that the next run with the same files can load it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path

import PIL

from pfedst.data.audit.facts import ImageFacts, Seen
from pfedst.data.decoding import ImageHeader
from pfedst.data.sites import Place, Sites
from pfedst.data.sources import FileSource, content_digest
from pfedst.data.tables import read_json
from pfedst.state import write_json

LOOKS = "looks"
RULE = 2
"""Version number, increased whenever the same files give other results."""


def memory_file(sites: Sites, compared: bool, folder: Path) -> Path | None:
    """Return the file for the scan result, named by the paths, sizes and times of change of the images.

    The range of grey values is also part of the name.

    Returns None if an image is not a file.

    Args:
        sites: sites whose images were scanned.
        compared: True if the images were compared with each other.
        folder: folder of the cache.
    """
    lines = [f"{RULE} {PIL.__version__} {compared} {sites.pixel_range}"]
    for site, split, part in sites.parts():
        paths = FileSource.paths_of(part.source)
        if len(paths) < len(part.labels):
            return None
        for path in paths:
            try:
                found = path.stat()
            except OSError:
                return None
            lines.append(f"{site}|{split}|{path.absolute()}|{found.st_size}|{found.st_mtime_ns}")
    content = "\n".join(lines).encode("utf-8", "backslashreplace")
    return folder / LOOKS / f"{content_digest(content)}.json"


def forget(folder: Path) -> None:
    """Remove all saved scan results from the folder of a cache."""
    shutil.rmtree(folder / LOOKS, ignore_errors=True)


def recall(file: Path, places: Sequence[Place]) -> Seen | None:
    """Load the scan result of these images, or return None if it is missing or damaged."""
    try:
        kept = read_json(file)
        facts = {
            place: ImageFacts(ImageHeader(*header) if header else None, digest, error, guessed)
            for place, (header, digest, error, guessed) in zip(places, kept["facts"], strict=True)
        }
        return Seen(facts, [(places[a], places[b], likeness) for a, b, likeness in kept["alike"]])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def remember(file: Path, seen: Seen) -> None:
    """Save a scan result. Errors are ignored: the file only saves time."""
    row = {place: number for number, place in enumerate(seen.facts)}
    content = {
        "facts": [[f.header and astuple(f.header), f.digest, f.error, f.guessed] for f in seen.facts.values()],
        "alike": [[row[a], row[b], likeness] for a, b, likeness in seen.alike],
    }
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, content)
