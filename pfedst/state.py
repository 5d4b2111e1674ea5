"""State on disk: one folder a round, safetensors and JSON, written whole or not at all.

A folder `round-000012/` holds `server.safetensors`, `client-<n>.safetensors` for every client, and `manifest.json`
with the round, the clients' names, and the SHA-256 of each file. It is written beside its place and renamed: what
bears the name is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import BoundedSemaphore
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
COPIES_IN_MEMORY = 4


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
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


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
    """Saves rounds while the next one trains, so that no fit waits for the disk.

    The parts are copied and written one after another, at most `COPIES_IN_MEMORY` ahead of the disk: the state of many
    clients is never in memory twice. One round is under way at most: the next `save`, and the end of the block, wait
    for it, and raise what it raised. A process that is killed loses a round that is not whole, as with `save_round`.

    Args:
        folder: the run's `state/`; made if absent.
        keep: number of rounds to keep, >= 1.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self._thread = ThreadPoolExecutor(1, "save")
        self._copies = BoundedSemaphore(COPIES_IN_MEMORY)
        self._saving: list[Future[None]] = []

    def save(self, round_number: int, parts: Mapping[str, Mapping[str, Any]]) -> None:
        """Begin to save; `parts` may change afterwards."""
        self.wait()
        writer = _RoundWriter(self.folder, round_number)
        self._submit(writer.start)
        for name, tree in parts.items():
            self._copies.acquire()
            self._submit(writer.add, name, flatten(tree)).add_done_callback(lambda _: self._copies.release())
        self._submit(writer.finish, len(parts), self.keep)

    def wait(self) -> None:
        """Until the last round is on disk."""
        saving, self._saving = self._saving, []
        for part in saving:
            part.result()

    def _submit(self, function: Callable[..., None], *arguments: Any) -> Future[None]:
        self._saving.append(self._thread.submit(function, *arguments))
        return self._saving[-1]

    def __enter__(self) -> RoundSaver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if kind is None:
            self.wait()


class _RoundWriter:
    """Writes one round; a part that fails leaves the round without its name."""

    def __init__(self, folder: Path, round_number: int) -> None:
        self.folder = folder
        self.round_number = round_number
        self.final = folder / f"round-{round_number:06d}"
        self.temporary = folder / f".{self.final.name}.{os.getpid()}.part"
        self.files: dict[str, dict[str, str]] = {}

    def start(self) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)

    def add(self, name: str, state: State) -> None:
        content = save(state)
        file = "server.safetensors" if name == "server" else f"client-{len(self.files)}.safetensors"
        write_atomically(self.temporary / file, content)
        self.files[name] = {"file": file, "sha256": hashlib.sha256(content).hexdigest()}

    def finish(self, parts: int, keep: int) -> None:
        if len(self.files) < parts:
            return
        manifest = {"format": FORMAT, "round": self.round_number, "parts": self.files}
        write_json(self.temporary / "manifest.json", manifest)
        if self.final.exists():
            shutil.rmtree(self.final)
        self.temporary.replace(self.final)
        _sync_folder(self.folder)
        for old in sorted(self.folder.glob("round-*"))[:-keep]:
            shutil.rmtree(old)


def save_round(folder: Path, round_number: int, parts: Mapping[str, Mapping[str, Any]], keep: int) -> Path:
    """Save the state after a round and drop all but the last `keep` of them.

    Args:
        folder: the run's `state/`; made if absent.
        round_number: rounds that are done.
        parts: `server` and one entry a client: nested dicts of tensors.
        keep: number of rounds to keep, >= 1.

    Returns:
        The folder of this round.
    """
    with RoundSaver(folder, keep) as saver:
        saver.save(round_number, parts)
    return folder / f"round-{round_number:06d}"


def load_last_round(folder: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """The newest saved round: its number, and what `save_round` was given as `parts`.

    Raises:
        StateError: nothing saved, or a file that is missing, damaged or of another format.
    """
    rounds = sorted(folder.glob("round-*"))
    if not rounds:
        raise StateError(f"{folder} holds no saved round; give the folder of a run that pfedst fit has written")
    place = rounds[-1] / "manifest.json"
    try:
        manifest = json.loads(place.read_text())
        if manifest["format"] != FORMAT:
            raise StateError(f"{place}: format {manifest['format']}, this version of pfedst reads {FORMAT}")
        parts = {
            name: _read_part(rounds[-1] / entry["file"], entry["sha256"]) for name, entry in manifest["parts"].items()
        }
        return int(manifest["round"]), parts
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateError(
            f"{place} is missing or damaged ({error!r}); remove {rounds[-1]} to use the round before"
        ) from error


def _read_part(path: Path, sha256: str) -> dict[str, Any]:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise StateError(f"{path} is damaged (its SHA-256 differs); remove {path.parent} to use the round before")
    try:
        return unflatten(load(content))
    except SafetensorError as error:
        raise StateError(f"{path} is no safetensors file: {error}") from error


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
