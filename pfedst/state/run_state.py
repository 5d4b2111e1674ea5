"""What of a run is on disk: the last rounds, the local fits of the round under way, and the fine-tuned clients.

| folder | holds |
|---|---|
| `round-000012` | server and all clients after round 12 |
| `round-000012-finetuned` | the same after the fine-tuning that ends a run |
| `fit-000013-00002` | client number 2 after its fit of round 13, until that round is saved |
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from pfedst.errors import StateError
from pfedst.state.files import clear_unfinished, sync_file, sync_folder, writing
from pfedst.state.snapshot import Snapshot, name_snapshot, read_snapshot, remove_folder, sync_snapshot, write_snapshot

FINETUNED = "-finetuned"


class RunState:
    """Reads a run's `state/`.

    Args:
        folder: of the state; it may not be there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def round_name(round_number: int, finetuned: bool = False) -> str:
        """Of the folder of a round."""
        return f"round-{round_number:06d}" + (FINETUNED if finetuned else "")

    @staticmethod
    def fit_name(round_number: int, client_number: int) -> str:
        """Of the folder of one local fit."""
        return f"fit-{round_number:06d}-{client_number:05d}"

    @staticmethod
    def round_of(name: str) -> int:
        """The number of rounds that are done in a snapshot of that name."""
        return int(name.split("-")[1])

    @staticmethod
    def is_finetuned(name: str) -> bool:
        """Whether a snapshot of that name is of fine-tuned clients."""
        return name.endswith(FINETUNED)

    def rounds(self) -> list[Path]:
        """Folders of saved rounds, whole or not, oldest first; a fine-tuned one comes behind its round."""
        return sorted(path for path in self.folder.glob("round-*") if re.fullmatch(r"round-\d{6,}(-\w+)?", path.name))

    def whole_rounds(self, finetuned: bool = True) -> Iterator[Snapshot]:
        """Saved rounds that are whole, the newest first; a damaged one is told by a warning and left where it is.

        Args:
            finetuned: whether fine-tuned ones count: they are no start for more rounds, nor for the fine-tuning.

        Raises:
            StateError: there are some, and none is whole.
        """
        damage: StateError | None = None
        whole = False
        for place in reversed(self.rounds()):
            if not finetuned and self.is_finetuned(place.name):
                continue
            try:
                found = read_snapshot(place)
            except StateError as error:
                damage = damage or error
                logging.getLogger("pfedst").warning("%s; an older round is looked for", error)
                continue
            whole = True
            yield found
        if damage is not None and not whole:
            raise damage

    def last_round(self) -> Snapshot:
        """The newest saved round that is whole.

        Raises:
            StateError: nothing saved, or nothing that is whole and of this format.
        """
        found = next(self.whole_rounds(), None)
        if found is None:
            raise StateError(
                f"{self.folder} holds no saved round; give the folder of a run that pfedst fit has written"
            )
        return found

    def part(self, name: str, part: str) -> dict[str, Any]:
        """One part of one snapshot.

        Raises:
            StateError: it is missing or damaged.
        """
        return read_snapshot(self.folder / name, part).parts.get(part, {})

    def fit(self, name: str) -> Snapshot | None:
        """A saved local fit; None if there is none that is whole, which is told."""
        if not (self.folder / name).exists():
            return None
        try:
            return read_snapshot(self.folder / name)
        except StateError as error:
            logging.getLogger("pfedst").warning("%s; the client is fitted again", error)
            return None

    def drop_fits(self, but_of: Collection[int] = ()) -> None:
        """Remove saved fits, but those of some rounds."""
        for fit in self.folder.glob("fit-*"):
            if re.fullmatch(r"fit-\d{6,}-\d{5,}", fit.name) and self.round_of(fit.name) not in but_of:
                remove_folder(fit)


class StateSaver:
    """Saves rounds and fits, and lets the training go on while the disk is waited for.

    Parts are written one after another, so that the state of many clients is never in memory twice. One snapshot is
    under way at most: the next one, and the end of the block, wait for it, and raise what it raised. A process that is
    killed loses a snapshot that is not whole. The thread does nothing but wait: one that computes would take Python's
    lock from the training in every step.

    Args:
        folder: the run's `state/`; made if absent.
        keep: number of rounds to keep, >= 1; older ones are dropped.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.state = RunState(folder)
        self.keep = keep
        self._thread = ThreadPoolExecutor(1, "save")
        self._saving: Future[None] | None = None

    def save(
        self,
        name: str,
        about: Mapping[str, Any],
        parts: Mapping[str, Mapping[str, Any]],
        first_sync: Sequence[Path] = (),
    ) -> None:
        """Begin to save; `parts` may change afterwards.

        Args:
            name: as `RunState` makes it; with that of a round, older rounds and the fits that led to it are dropped.
            about: what to say about it, as JSON takes it.
            parts: nested dicts of tensors by name: `server`, one a client.
            first_sync: files that must be on the disk before the snapshot is.

        Raises:
            StateError: the disk refuses this snapshot, or refused the one before.
        """
        self.wait()
        final = self.state.folder / name
        with writing(final):
            temporary = write_snapshot(final, about, parts)
            if name.startswith("fit-"):
                # at once, so that a kill in the next fit costs that one only; what a machine that loses its power has
                # not synced is found by its checksum, and fitted again
                name_snapshot(temporary, final)
                self._saving = self._thread.submit(self._sync_fit, final)
            else:
                self._saving = self._thread.submit(self._publish_round, temporary, final, tuple(first_sync))

    def wait(self) -> None:
        """Until the last snapshot is on disk.

        Raises:
            StateError: the disk refused it.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _sync_fit(self, folder: Path) -> None:
        with writing(folder):
            sync_snapshot(folder)

    def _publish_round(self, temporary: Path, final: Path, first_sync: Sequence[Path]) -> None:
        with writing(final):
            for path in first_sync:
                sync_file(path)
            sync_snapshot(temporary)
            name_snapshot(temporary, final)
            sync_folder(final.parent)
        self.state.drop_fits()
        self._drop_old()

    def _drop_old(self) -> None:
        """A fine-tuned state is dropped once its run has gone on; it is none of those that are kept to go on from."""
        rounds = self.state.rounds()
        plain = [path for path in rounds if not self.state.is_finetuned(path.name)]
        finetuned = [path for path in rounds[:-1] if self.state.is_finetuned(path.name)]
        for old in (*plain[: -self.keep], *finetuned):
            remove_folder(old)

    def __enter__(self) -> StateSaver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        clear_unfinished(self.state.folder)  # a signal may have come while a snapshot was written
        if kind is None:
            self.wait()
