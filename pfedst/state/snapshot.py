"""A snapshot: a folder of safetensors files and a manifest, which is whole or does not bear its name.

It holds a safetensors file for each part, and `manifest.json` with the snapshot's name, what is said about it, the size
and SHA-256 of each file, and the manifest's own SHA-256. It is written beside its place and renamed. A later change, be
it of one bit, is found on reading.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pfedst.errors import StateError
from pfedst.messages.payload import State
from pfedst.state.files import discard, json_bytes, sync_file, sync_folder

FORMAT = 3
"""Of a snapshot. In format 2 a snapshot of the server held the personal state of all clients."""
SEPARATOR = "|"
MANIFEST = "manifest.json"
PART_FILE = r"[a-z]+\.safetensors"
END = b"\n}\n"
SEAL = re.compile(rb',\n  "sha256": "([0-9a-f]{64})"' + re.escape(END) + rb"\Z")
"""The end of a manifest: the SHA-256 of the manifest without this entry."""
MOST_MANIFEST_BYTES = 2**26
"""More than a federation of 100,000 clients needs; a larger manifest is not read."""


class Snapshot(NamedTuple):
    """The state that is saved at one moment.

    Attributes:
        name: of its folder.
        about: facts about it, as JSON takes them.
        parts: nested dicts of tensors by name: `server`; or `client` and `message`.
    """

    name: str
    about: dict[str, Any]
    parts: dict[str, dict[str, Any]]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> State:
    """Flatten nested dicts of tensors into one dict, with keys joined by `|`.

    Raises:
        StateError: a leaf is not a tensor, or a name contains the separator.
    """
    flat: State = {}
    for key, value in tree.items():
        if SEPARATOR in str(key):
            raise StateError(f'state "{prefix}{key}": names may not hold "{SEPARATOR}"')
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}{SEPARATOR}")
        elif isinstance(value, Tensor):
            # a method may keep one tensor under two names, which safetensors refuses
            flat[f"{prefix}{key}"] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        else:
            raise StateError(f'state "{prefix}{key}" is a {type(value).__name__}: keep tensors, and dicts of them')
    return flat


def unflatten(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of `flatten`, but for empty dicts."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, leaf = key.split(SEPARATOR)
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return tree


def saved_table(saved: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the dict that is saved under a name; empty dicts are not saved.

    Raises:
        StateError: there is a tensor instead.
    """
    found = saved.get(key, {})
    if not isinstance(found, dict):
        raise StateError(f'the saved state holds a tensor under "{key}", where a dict of tensors belongs')
    return found


def write_snapshot(final: Path, about: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write all files of a snapshot, not yet synced, into a folder beside its place; `name_snapshot` renames it.

    Raises:
        OSError: the disk refuses; nothing is left.
    """
    temporary = _beside(final)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        files: dict[str, dict[str, Any]] = {}
        for name, tree in parts.items():
            content = save(flatten(tree))
            file = f"{name}.safetensors"
            (temporary / file).write_bytes(content)
            files[name] = {"file": file, "bytes": len(content), "sha256": _sha256(content)}
        manifest = {"format": FORMAT, "name": final.name, "about": about, "parts": files}
        (temporary / MANIFEST).write_bytes(_sealed(manifest))
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return temporary


def name_snapshot(temporary: Path, final: Path) -> None:
    """Rename a folder that `write_snapshot` made; from now on a kill of the process leaves the snapshot whole.

    Raises:
        OSError: the disk refuses; nothing is left of it.
    """
    try:
        remove_folder(final)
        temporary.replace(final)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sync_snapshot(folder: Path) -> None:
    """Wait until the files of a snapshot are on the disk; from now on a loss of power leaves them whole.

    Raises:
        OSError: the disk refuses; nothing is left of it.
    """
    try:
        for path in folder.iterdir():
            sync_file(path)
        sync_folder(folder)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def remove_folder(folder: Path) -> None:
    """Remove a folder, or a file of that name: the name is removed before the content."""
    leaving = _beside(folder, "old")
    discard(leaving)
    if os.path.lexists(folder):
        folder.replace(leaving)
        discard(leaving)


def read_snapshot(folder: Path, part: str | None = None) -> Snapshot:
    """Read and verify a snapshot; with `part`, read that part alone.

    Raises:
        StateError: a file is missing, changed or of another format.
    """
    manifest = _read_manifest(folder)
    try:
        parts = {
            name: _read_part(folder, entry["file"], entry["bytes"], entry["sha256"])
            for name, entry in manifest["parts"].items()
            if part in (None, name)
        }
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"{folder} is missing or damaged ({error!r})") from error
    return Snapshot(manifest["name"], manifest["about"], parts)


def _beside(folder: Path, what: str = "new") -> Path:
    return folder.with_name(f".{folder.name}.{os.getpid()}.{what}.part")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    content = json_bytes(manifest)
    return content.removesuffix(END) + f',\n  "sha256": "{_sha256(content)}"'.encode() + END


def _read_manifest(folder: Path) -> dict[str, Any]:
    place = folder / MANIFEST
    try:
        if place.exists() and not place.is_file():  # a device or a pipe would be read without end
            raise StateError(f"{place} is not a file of a snapshot")
        if place.stat().st_size > MOST_MANIFEST_BYTES:
            raise StateError(f"{place} is damaged (larger than any manifest)")
        content = place.read_bytes()
        manifest: dict[str, Any] = json.loads(content)
        if manifest["format"] != FORMAT:
            raise StateError(
                f"{place}: format {manifest['format']}, this version of pfedst reads {FORMAT}. A run can be continued, "
                f"tested and exported by the version that made it (identity.json names it); this version reads its "
                f"summary and its tables"
            )
        manifest.pop("sha256", None)
        seal = SEAL.search(content)
        changed = (
            seal is None
            or _sha256(content[: seal.start()] + END) != seal[1].decode()
            or manifest["name"] != folder.name
            or not isinstance(manifest["about"], dict)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StateError(f"{place} is missing or damaged ({error!r})") from error
    if changed:
        raise StateError(f"{place} is damaged (its content has changed)")
    return manifest


def _read_part(folder: Path, file: str, size_bytes: int, sha256: str) -> dict[str, Any]:
    path = folder / file
    if not re.fullmatch(PART_FILE, file) or (path.exists() and not path.is_file()):  # a device, another's file
        raise StateError(f"{folder}: {file} is not a file of a snapshot")
    try:
        # the size first: a file that was replaced by a huge one is never in memory
        if path.stat().st_size != size_bytes:
            raise StateError(f"{path} is damaged (its size differs)")
        content = path.read_bytes()
    except OSError as error:
        raise StateError(f"{path} is missing or damaged ({error.strerror})") from error
    if _sha256(content) != sha256:
        raise StateError(f"{path} is damaged (its SHA-256 differs)")
    try:
        return unflatten(load(content))
    except SafetensorError as error:
        raise StateError(f"{path} is not a safetensors file: {error}") from error
