"""Count the files and folders that a reader of images does not use."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from pfedst.data.folders import OF_THE_DISK, is_hidden, is_image
from pfedst.errors import listed

OTHER_IMAGES = "images outside the folders of classes"
BESIDE = "beside an image of the same name"


def left_out(
    folders: Iterable[Path], used: Collection[Path], below: bool = True, images: str = OTHER_IMAGES
) -> Counter[str]:
    """Return the number of entries of folders that are not used, by kind.

    Kinds are the suffix of a file, such as `.pdf`, or `.json beside an image of the same name`; the name of a folder of
    the disk, such as `@eaDir`; `hidden`; folders without an image.

    Args:
        folders: folders to list.
        used: the images that a reader uses.
        below: list folders below them, too. Hidden ones are counted and not entered.
        images: name of the kind of images that are not used.
    """
    found: Counter[str] = Counter()
    parents = {path.parent for path in used}
    ancestors = parents.union(*(path.parents for path in parents))
    for top in folders:
        for folder, files, inside in _listings(top, ancestors, below):
            stems = {path.stem for path in files if path in used}
            found.update(_file_kind(path, stems, images) for path in files if path not in used)
            hidden = [path for path in inside if is_hidden(path.name)]
            found.update(_hidden_kind(path) for path in hidden)
            if below and folder not in ancestors and len(inside) == len(hidden):
                found[f"folder without an image that is read ({folder.relative_to(top)})"] += 1
    return found


def left_out_line(place: str, counts: Mapping[str, int]) -> str:
    """Return one line on the entries that are not used: `site "a": not used: 4 .pdf, 1 @eaDir`."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    where = f'site "{place}"' if place else "data set"
    return f"{where}: not used: {listed([f'{count:,} {kind}' for kind, count in ordered])}"


def _listings(folder: Path, ancestors: Collection[Path], below: bool) -> Iterator[tuple[Path, list[Path], list[Path]]]:
    """Yield each folder with its files and its folders. A link to a folder is followed if images behind it are used."""
    try:
        with os.scandir(folder) as listing:
            entries = {folder / entry.name: entry.is_dir() for entry in listing}
    except OSError:  # nothing is used of a folder that may not be listed
        return
    inside = [path for path, is_folder in entries.items() if is_folder]
    yield folder, [path for path, is_folder in entries.items() if not is_folder], inside
    for path in inside if below else ():
        if not is_hidden(path.name) and (path in ancestors or not path.is_symlink()):
            yield from _listings(path, ancestors, below)


def _file_kind(path: Path, stems: Collection[str], images: str) -> str:
    if is_hidden(path.name):
        return _hidden_kind(path)
    if is_image(path):
        return images
    kind = path.suffix.lower() or "without suffix"
    return f"{kind} {BESIDE}" if {path.stem, Path(path.stem).stem} & set(stems) else kind


def _hidden_kind(path: Path) -> str:
    return path.name if path.name.lower() in OF_THE_DISK else "hidden"
