"""Folders of images: which one is used, and the folders and images in it."""

from __future__ import annotations

import os
from pathlib import Path

from pfedst.data.dicom.reader import is_dicom
from pfedst.errors import DataError
from pfedst.names import plain_name
from pfedst.options import ROOT_VARIABLE

IMAGE_SUFFIXES = (
    *(
        ".bmp",
        ".dcm",
        ".dicom",
        ".gif",
        ".j2k",
        ".jp2",
        ".jpeg",
        ".jpg",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
    ),
    ".webp",
)

OF_THE_DISK = frozenset(
    {
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "#recycle",
        "#snapshot",
        "__macosx",
        "$recycle.bin",
        "desktop.ini",
        "lost+found",
        "system volume information",
        "thumbs.db",
    }
)
"""Names, in lower case, that network disks and operating systems put among the files of their users."""


def is_hidden(name: str) -> bool:
    """Return True for a file or folder that no user has put there, such as thumbnails of a network disk."""
    return name.startswith(".") or name.lower() in OF_THE_DISK


def existing_folder(path: Path | str | None, option: str) -> Path:
    """Return the folder that an option names, or else the environment variable PFEDST_DATA_ROOT.

    Raises:
        DataError: If neither is given, or the folder does not exist.
    """
    path = path or os.environ.get(ROOT_VARIABLE)
    if path is None:
        raise DataError(f"{option} is not given: name the folder with the images, or set {ROOT_VARIABLE}")
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"{option} {folder}: no such folder; give the folder with the images")
    return folder


def folders(root: Path) -> list[str]:
    """Return the sorted names of the folders in `root`, without hidden ones and those of the disk."""
    if not root.is_dir():
        return []
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))


def named_folders(root: Path) -> dict[str, list[Path]]:
    """Return the folders in `root` by their names in one spelling, sorted; a name may be written in several ways."""
    found: dict[str, list[Path]] = {}
    for folder in folders(root):
        found.setdefault(plain_name(folder) or folder, []).append(root / folder)
    return dict(sorted(found.items()))


def is_image(path: Path) -> bool:
    """Return True if the suffix is that of an image, or a file without suffix is DICOM."""
    return path.suffix.lower() in IMAGE_SUFFIXES or is_dicom(path)


def images_in(folder: Path) -> list[Path]:
    """Return the sorted images of a folder; `left_out` counts the other files."""
    with os.scandir(folder) as listing:
        files = [folder / e.name for e in listing if _is_file(e) and not is_hidden(e.name)]
    return sorted(path for path in files if is_image(path))


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Return True for files and broken links: a broken link is reported as a missing image, not ignored."""
    return entry.is_file(follow_symlinks=False) or (entry.is_symlink() and not Path(entry.path).is_dir())
