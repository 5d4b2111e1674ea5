"""Check that image files exist and lie in the folders that a data set names."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from pfedst.errors import DataError

MOST_SHOWN = 200
"""Maximum number of characters of a name in an error: a name may be as long as the table that lists it."""
MOST_LINKS = 40
"""Maximum length of a chain of links, as in Linux."""


class Look(NamedTuple):
    """Files with problems.

    Attributes:
        missing: files that do not exist or are not files, with the reason if it is known.
        outside: files outside the roots, with their real location.
    """

    missing: dict[Path, str]
    outside: dict[Path, Path]


class _Folder(NamedTuple):
    entries: dict[str, os.DirEntry[str]]
    place: Path
    inside: bool


class _Folders:
    """Cache of folders that have been listed and resolved."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.allowed = _resolved(roots)
        self.known: dict[str, _Folder] = {}

    def followed(self, path: str) -> tuple[_Folder, str, os.DirEntry[str] | None, bool]:
        """Follow all links of a path.

        Returns:
            The folder, the name, the entry (None if it does not exist or the links do not end), and True if there was a
                link.
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
    """Check files without opening them.

    Each folder is listed and resolved once. A single file is queried only if it is a link, because on network disks
    each query takes a millisecond.

    Args:
        paths: paths of the files.
        roots: folders, which may be links, that must hold the files once all links and `..` are followed. Empty: the
            files may lie anywhere.
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
    """Raise an error for files that lie in `root` by name, but outside `root` once links are followed.

    Raises:
        DataError: If there is such a file. The message names the first file and its real location.
    """
    if outside := look(paths, [root]).outside:
        raise DataError(outside_message(outside, [root], remedy))


def outside_message(outside: Mapping[Path, Path], roots: Sequence[Path], remedy: str, where: str = "") -> str:
    """Return the error message for files outside the roots.

    Args:
        outside: files outside, as returned by `look`.
        roots: roots, as passed to `look`.
        remedy: what to do.
        where: the row that names the first file, if a table does.
    """
    (path, target), *others = outside.items()
    place = f" (to {shown(target)})" if path != target else ""
    more = f", and {len(others):,} more images do" if others else ""
    return f"{where}{shown(path)} leads out of {' and '.join(map(str, roots))}{place}{more}; {remedy}"


def shown(path: PurePath, why: str = "") -> str:
    """Return a path for an error: undecodable bytes are escaped, and the middle of a very long path is left out."""
    text = str(path).encode("utf-8", "backslashreplace").decode()
    if len(text) > MOST_SHOWN:
        text = f"{text[: MOST_SHOWN // 2]}...{text[-MOST_SHOWN // 2 :]}"
    return f"{text} ({why})" if why else text


def _resolved(roots: Sequence[Path]) -> list[str]:
    """Return the path prefixes of everything within the roots."""
    found = [Path(os.path.realpath(root)) for root in roots]
    for root in list(found):
        # a snapshot in the cache of Hugging Face's hub is a tree of links to the blobs beside it
        for place in (root, *root.parents):
            if place.parent.name == "snapshots" and (blobs := place.parent.parent / "blobs").is_dir():
                found.append(blobs)
    return [_prefix(root) for root in found]


def _prefix(folder: Path) -> str:
    """Return the prefix of all paths in a folder, in lower case if the system ignores case."""
    return os.path.normcase(folder).rstrip(os.sep) + os.sep


def _alike(name: str, folder: _Folder) -> str:
    """Return a hint for a missing name: Windows and macOS ignore differences between names that Linux does not."""
    if "\\" in name:
        return "write / in place of \\"

    def plain(text: str) -> str:
        return unicodedata.normalize("NFC", text).casefold()

    wanted = plain(name)
    close = next((entry for entry in folder.entries if plain(entry) == wanted), None)
    return f"there is {close}" if close is not None else ""
