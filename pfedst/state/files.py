"""Files that are written whole or not at all, and the error if a disk refuses them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pfedst.errors import StateError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError within a block that writes a part of a run into one error with a remedy.

    Raises:
        StateError: the disk is full, read-only, gone, or the like.
    """
    try:
        yield
    except OSError as error:
        raise StateError(
            f"{path} cannot be written ({error.strerror or error}): the state saved before is complete; free some "
            f"space or make the folder writable, then continue with the same command, --name and --resume true"
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: beside its place, synced, then renamed.

    Raises:
        OSError: the disk refuses; nothing is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Return readable JSON; NaN raises."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write readable JSON atomically.

    Raises:
        OSError: the disk refuses.
    """
    write_atomically(path, json_bytes(content))


def sync_file(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def discard(path: Path) -> None:
    """Remove the file or folder of a name, as far as the disk allows."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def clear_unfinished(folder: Path) -> None:
    """Remove the files and folders that a killed process was writing or removing."""
    for left in folder.glob(".*.part"):
        discard(left)
