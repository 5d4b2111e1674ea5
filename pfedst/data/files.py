"""Whether image files are there, and lie in the folders that a data set names."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from pfedst.errors import DataError

MOST_TOLD = 200
"""Characters of a name in an error: a name may be as long as the table that lists it."""
MOST_LINKS = 40
"""That lead from one to the next; as Linux has it."""


class Look(NamedTuple):
    """What is wrong with files.

    Attributes:
        missing: those that are not there, or are no files, and why if more is known.
        outside: those that lie outside of the roots, and where they really are.
    """

    missing: dict[Path, str]
    outside: dict[Path, Path]


class _Folder(NamedTuple):
    entries: dict[str, os.DirEntry[str]]
    place: Path
    inside: bool


class _Folders:
    """Folders that have been listed and resolved."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.allowed = _resolved(roots)
        self.known: dict[str, _Folder] = {}

    def followed(self, path: str) -> tuple[_Folder, str, os.DirEntry[str] | None, bool]:
        """At the end of all links: the folder, the name, the entry (None without one, or without an end).

        And whether there was a link.
        """
        linked = False
        for _ in range(MOST_LINKS):
            above, name = os.path.split(path)  # Path.parent is slow
            folder = self.known.get(above) or self.known.setdefault(above, self._listed(above))
            entry = folder.entries.get(name)
            if entry is None or not entry.is_symlink():
                break
            linked = True
            path = os.path.join(folder.place, os.readlink(entry.path))  # noqa: PTH115, PTH118
        else:
            entry = None
        return folder, name, entry, linked

    def _listed(self, above: str) -> _Folder:
        place = Path(above).absolute()
        try:
            place = Path(os.path.realpath(above))
            with os.scandir(above or os.curdir) as listing:
                entries = {entry.name: entry for entry in listing}
        except (OSError, ValueError):  # a zero byte in a name is a ValueError
            entries = {}
        return _Folder(entries, place, not self.allowed or _prefix(place).startswith(tuple(self.allowed)))


def look(paths: Iterable[Path], roots: Sequence[Path] = ()) -> Look:
    """Look at files without opening one.

    A folder is listed and resolved once, and a file is asked for by itself only if it is a link: on network disks each
    question takes a millisecond.

    Args:
        paths: of the files.
        roots: folders, which may be links, that the files must lie in once all links and `..` are followed; none:
            they may lie anywhere.
    """
    folders, found = _Folders(roots), Look({}, {})
    for path in paths:
        folder, name, entry, linked = folders.followed(str(path))
        if not folder.inside:
            found.outside[path] = folder.place / name
        elif entry is None:
            found.missing[path] = "a link that leads to no file" if linked else _alike(name, folder)
        elif not entry.is_file(follow_symlinks=False):
            found.missing[path] = "no file"
    return found


def refuse_outside(
    paths: Iterable[Path], root: Path, remedy: str = "give --outside_files true if that is meant"
) -> None:
    """Refuse files that `root` holds by name, but not in truth.

    Raises:
        DataError: naming the first, and where it really lies.
    """
    if outside := look(paths, [root]).outside:
        raise DataError(told_outside(outside, [root], remedy))


def told_outside(outside: Mapping[Path, Path], roots: Sequence[Path], remedy: str, where: str = "") -> str:
    """The one message for files outside of the roots.

    Args:
        outside: of `look`.
        roots: as given there.
        remedy: what to do.
        where: the row that names the first of them, if a table does.
    """
    (path, target), *others = outside.items()
    place = f" (to {shown(target)})" if path != target else ""
    more = f", and {len(others):,} more images do" if others else ""
    return f"{where}{shown(path)} leads out of {' and '.join(map(str, roots))}{place}{more}; {remedy}"


def shown(path: PurePath, why: str = "") -> str:
    """A path for an error: bytes that are no text spelled out, the middle of a very long one left out."""
    text = str(path).encode("utf-8", "backslashreplace").decode()
    if len(text) > MOST_TOLD:
        text = f"{text[: MOST_TOLD // 2]}...{text[-MOST_TOLD // 2 :]}"
    return f"{text} ({why})" if why else text


def _resolved(roots: Sequence[Path]) -> list[str]:
    """What the place of everything within the roots begins with."""
    found = [Path(os.path.realpath(root)) for root in roots]
    for root in list(found):
        # a snapshot in the cache of Hugging Face's hub is a tree of links to the blobs beside it
        for place in (root, *root.parents):
            if place.parent.name == "snapshots" and (blobs := place.parent.parent / "blobs").is_dir():
                found.append(blobs)
    return [_prefix(root) for root in found]


def _prefix(folder: Path) -> str:
    """As text that everything in it begins with; in lower case where the system does not tell cases apart."""
    return os.path.normcase(folder).rstrip(os.sep) + os.sep


def _alike(name: str, folder: _Folder) -> str:
    """What a name may have meant: disks of Windows and macOS do not tell some names apart, Linux does."""
    if "\\" in name:
        return "write / in place of \\"

    def plain(text: str) -> str:
        return unicodedata.normalize("NFC", text).casefold()

    wanted = plain(name)
    close = next((entry for entry in folder.entries if plain(entry) == wanted), None)
    return f"there is {close}" if close is not None else ""
