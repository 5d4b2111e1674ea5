"""The personal state of a site, on its own disk: a snapshot after each fit.

| folder | holds |
|---|---|
| `sites/NAME/after-000012` | the client after its fit of round 12, the record of that fit and its message |

The shared tensors are saved once, in the message, unless the method sends others than the client has.

A site keeps the snapshots of its last two fits, since the server may have merged the last one or not, and those that
the server pins: the fits behind the best round on validation, and behind every round that the server can resume.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfedst.client.model import ADAPTER, ClientModel
from pfedst.errors import StateError, listed
from pfedst.messages.payload import NET, Payload, State, check_plain
from pfedst.messages.records import is_fit_record
from pfedst.messages.requests import Reply
from pfedst.state.files import clear_unfinished, sync_folder, writing
from pfedst.state.snapshot import (
    Snapshot,
    name_snapshot,
    read_snapshot,
    remove_folder,
    saved_table,
    sync_snapshot,
    write_snapshot,
)

KEPT = 2
"""Number of snapshots that a site keeps besides the pinned ones."""
SITES = "sites"
"""The folder within a run's folder that holds the state of each site."""
CLIENT, MESSAGE = "client", "message"
LONGEST_NAME = 80


def site_folder(name: str) -> str:
    """Return the name of a site's folder: the site's name, with characters that a file system may refuse escaped.

    Different names give different folders.
    """
    kept = re.sub(r"[^\w\- .]|^[. ]|[. ]$", lambda found: f"%{ord(found[0]):X}", name)
    if kept == name and len(name.encode()) <= LONGEST_NAME and name:
        return name
    return f"{kept[: LONGEST_NAME // 4]}%{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


class SiteState:
    """The snapshots of one site.

    Args:
        sites: the folder of all sites of a run.
        name: the site.
    """

    def __init__(self, sites: Path, name: str) -> None:
        self.name = name
        self.folder = sites / site_folder(name)

    def path(self, number: int) -> Path:
        """Return the folder of the snapshot after a fit."""
        return self.folder / f"after-{number:06d}"

    def read(self, number: int) -> Snapshot:
        """Read the snapshot after a fit.

        Raises:
            StateError: the snapshot is missing or damaged, or of another site.
        """
        found = read_snapshot(self.path(number))
        if found.about.get("site") != self.name or CLIENT not in found.parts:
            raise StateError(f"{self.path(number)} is not a snapshot of site {self.name}")
        client, message = found.parts[CLIENT], found.parts.get(MESSAGE, {})
        try:
            check_plain(message, "the message")
            shared = {ADAPTER + key: tensor for key, tensor in message.get(NET, {}).items()}
            client["model"] = shared | saved_table(client, "model")
        except StateError as error:
            raise StateError(f"{self.path(number)}: {error}") from error
        return found

    def start(self, number: int) -> Snapshot:
        """Read the snapshot that a client continues from.

        Raises:
            StateError: the snapshot is missing or damaged, or of another site; the message has a remedy.
        """
        with self._remedy():
            return self.read(number)

    def load(self, saved: Snapshot, model: ClientModel) -> None:
        """Put a client in the state of a snapshot.

        Raises:
            StateError: the snapshot is of another model, or not finite; the message has a remedy.
        """
        with self._remedy():
            self._load(saved, model)

    def _load(self, saved: Snapshot, model: ClientModel) -> None:
        try:
            load_client_part(model, saved.parts[CLIENT])
        except StateError as error:
            raise StateError(f"{self.folder / saved.name}: {error}") from error

    @contextmanager
    def _remedy(self) -> Iterator[None]:
        try:
            yield
        except StateError as error:
            raise StateError(
                f"{error}; client {self.name} continues from this folder: restore a copy of it, or continue with the "
                f"same command, --name and --resume true, which looks for an older round, or start a new run"
            ) from error

    def answered(self, number: int, digest: str, model: ClientModel | None = None) -> Reply | None:
        """Return the reply to a request that was answered before; None if the fit has to be done.

        Args:
            number: of the fit.
            digest: of the request.
            model: the client, which is put in the state after the fit: a reply is worth nothing if the client cannot
                continue from that state.
        """
        if not self.path(number).exists():
            return None
        try:
            found = self.read(number)
            if model is not None:
                self._load(found, model)
        except StateError as error:
            logging.getLogger("pfedst").warning("%s; the client is fitted again", error)
            return None
        record = found.about.get("record")
        if found.about.get("request") != digest or not is_fit_record(record):
            return None
        return Reply({"record": record, "repeated": True}, found.parts.get(MESSAGE, {}))

    def save(self, number: int, about: Mapping[str, Any], model: ClientModel, message: Payload) -> None:
        """Save the client after a fit. Once this returns, the snapshot survives a loss of power.

        Args:
            number: of the fit.
            about: digest of the request, record, epochs of fine-tuning.
            model: the client.
            message: its message.

        Raises:
            StateError: the disk refuses.
        """
        final = self.path(number)
        with writing(final):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # personal state is for this user alone
            client = client_part(model)
            client["model"] = _not_in(message.get(NET, {}), client["model"])
            parts = {CLIENT: client} | ({MESSAGE: message} if message else {})
            temporary = write_snapshot(final, {"site": self.name, **about}, parts)
            sync_snapshot(temporary)
            name_snapshot(temporary, final)
            for folder in (self.folder, self.folder.parent):
                sync_folder(folder)

    def drop(self, keep: Collection[int]) -> None:
        """Remove all snapshots but the last two fits and those in `keep`, and what a killed process left."""
        clear_unfinished(self.folder)
        numbers = self.numbers()
        for number in set(numbers[:-KEPT]) - set(keep):
            remove_folder(self.path(number))

    def numbers(self) -> list[int]:
        """Return the numbers of the saved fits, in order."""
        found = (re.fullmatch(r"after-(\d{6,})", path.name) for path in self.folder.glob("after-*"))
        return sorted(int(match[1]) for match in found if match)


def _not_in(net: State, tensors: State) -> State:
    """Return the tensors of a client without the shared ones, if its message holds exactly those."""
    sent = {ADAPTER + key: tensor for key, tensor in net.items()}
    if any(key not in tensors or not torch.equal(tensor, tensors[key].cpu()) for key, tensor in sent.items()):
        return tensors
    return {key: tensor for key, tensor in tensors.items() if key not in sent}


def client_part(model: ClientModel) -> dict[str, Any]:
    """Return all of a client that a run needs, as nested dicts of tensors: the client's own, not copies."""
    return {
        "model": model.own_tensors(),
        "memo": model.memo,
        "optimizer": _saved_optimizer(model.optimizer_state or {}),
    }


def load_client_part(model: ClientModel, part: Mapping[str, Any]) -> None:
    """Put a client in the state that `client_part` returned.

    Raises:
        StateError: other keys or shapes than this client's.
    """
    tensors, kept = saved_table(part, "model"), saved_table(part, "optimizer")
    check_plain({"model": tensors}, f"the saved state of client {model.name}")
    if any(not number.isdecimal() or not isinstance(of_one, dict) for number, of_one in kept.items()):
        raise StateError(f"the saved state of client {model.name}: its optimiser kept {listed(sorted(kept))}")
    model.move_to("cpu").load_own_state(tensors)
    model.memo = saved_table(part, "memo")
    model.optimizer_state = {int(number): dict(of_one) for number, of_one in kept.items()} or None


def _saved_optimizer(state: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[str, Tensor]]:
    """Return what an optimiser keeps as tensors; entries that are None are the same in a new optimiser."""
    return {
        str(number): {
            name: value if isinstance(value, Tensor) else torch.tensor(value)
            for name, value in kept.items()
            if value is not None
        }
        for number, kept in state.items()
    }
