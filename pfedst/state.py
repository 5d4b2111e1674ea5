"""State on disk: one folder a round, safetensors and JSON, written whole or not at all.

A folder `round-000012/` holds `server.safetensors`, `client-<n>.safetensors` for every client, and `manifest.json`
with the round, the clients' names, and the SHA-256 of each file. It is written beside its place and renamed: what
bears the name is complete.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pfedst.errors import StateError
from pfedst.payload import State

FORMAT = 1
SEPARATOR = "|"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: beside its place, synced, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write readable JSON atomically; NaN has no place in it."""
    write_atomically(path, _json(content))


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def flatten(tree: Mapping[str, Any], prefix: str = "") -> State:
    """Nested dicts of tensors -> one flat dict, keys joined by `|`.

    Raises:
        StateError: a leaf that is no tensor, or a name that holds the separator.
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


class RoundSaver:
    """Saves rounds, and lets the next one train while the disk is waited for.

    Parts are written one after another, so that the state of many clients is never in memory twice. One round is under
    way at most: the next `save`, and the end of the block, wait for it, and raise what it raised.
    A process that is killed loses a round that is not whole. The thread does nothing but wait: one that computes would
    take Python's lock from the training in every step.

    Args:
        folder: the run's `state/`; made if absent.
        keep: number of rounds to keep, >= 1; older ones are dropped.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self._thread = ThreadPoolExecutor(1, "save")
        self._saving: Future[None] | None = None

    def save(self, round_number: int, parts: Mapping[str, Mapping[str, Any]]) -> None:
        """Begin to save the state after a round; `parts` may change afterwards.

        Args:
            round_number: rounds that are done.
            parts: `server` and one entry a client: nested dicts of tensors.
        """
        self.wait()
        final = self.folder / f"round-{round_number:06d}"
        self._saving = self._thread.submit(_publish, _write_parts(final, round_number, parts), final, self.keep)

    def clear_unfinished(self) -> None:
        """Remove what a killed process was writing."""
        for left in self.folder.glob(".round-*.part"):
            shutil.rmtree(left, ignore_errors=True)

    def wait(self) -> None:
        """Until the last round is on disk."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def __enter__(self) -> RoundSaver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()


def _write_parts(final: Path, round_number: int, parts: Mapping[str, Mapping[str, Any]]) -> Path:
    """All files of a round, not yet synced, in a folder beside its place."""
    temporary = final.with_name(f".{final.name}.{os.getpid()}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    files: dict[str, dict[str, str]] = {}
    for index, (name, tree) in enumerate(parts.items()):
        content = save(flatten(tree))
        file = "server.safetensors" if name == "server" else f"client-{index}.safetensors"
        (temporary / file).write_bytes(content)
        files[name] = {"file": file, "sha256": hashlib.sha256(content).hexdigest()}
    (temporary / "manifest.json").write_bytes(_json({"format": FORMAT, "round": round_number, "parts": files}))
    return temporary


def _publish(temporary: Path, final: Path, keep: int) -> None:
    """Sync the files, then give the folder its name."""
    for path in temporary.iterdir():
        with path.open("r+b") as file:
            os.fsync(file.fileno())
    if final.exists():
        shutil.rmtree(final)
    temporary.replace(final)
    _sync_folder(final.parent)
    for old in sorted(final.parent.glob("round-*"))[:-keep]:
        shutil.rmtree(old)


def load_last_round(folder: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """The newest saved round that is whole: its number, and what `RoundSaver.save` was given as `parts`.

    A newer one that is damaged is told by a warning, and left where it is.

    Raises:
        StateError: nothing saved, or no round whose files are all there, undamaged and of this format.
    """
    found = next(saved_rounds(folder), None)
    if found is None:
        raise StateError(f"{folder} holds no saved round; give the folder of a run that pfedst fit has written")
    return found


def saved_rounds(folder: Path) -> Iterator[tuple[int, dict[str, dict[str, Any]]]]:
    """Saved rounds that are whole, the newest first; see `load_last_round`.

    Raises:
        StateError: there are some, and none is whole.
    """
    damage: StateError | None = None
    whole = False
    for place in sorted(folder.glob("round-*"), reverse=True):
        try:
            found = _read_round(place)
        except StateError as error:
            damage = damage or error
            logging.getLogger("pfedst").warning("%s; an older round is looked for", error)
            continue
        whole = True
        yield found
    if damage is not None and not whole:
        raise damage


def _read_round(folder: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    place = folder / "manifest.json"
    try:
        manifest = json.loads(place.read_text())
        if manifest["format"] != FORMAT:
            raise StateError(f"{place}: format {manifest['format']}, this version of pfedst reads {FORMAT}")
        parts = {name: _read_part(folder / entry["file"], entry["sha256"]) for name, entry in manifest["parts"].items()}
        return int(manifest["round"]), parts
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(f"{place} is missing or damaged ({error!r})") from error


def _read_part(path: Path, sha256: str) -> dict[str, Any]:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise StateError(f"{path} is damaged (its SHA-256 differs)")
    try:
        return unflatten(load(content))
    except SafetensorError as error:
        raise StateError(f"{path} is no safetensors file: {error}") from error


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
