"""The server's state of a run on disk: the last rounds, and the best one.

| folder | holds |
|---|---|
| `round-000012` | the server after round 12, and which fits it has merged |
| `round-000012-finetuned` | the same after the fine-tuning that ends a run |
| `best` | the server after the round with the best validation |
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from pfedst.errors import ConfigurationError, StateError, listed
from pfedst.state.files import clear_unfinished, sync_file, sync_folder, writing
from pfedst.state.round_choices import BEST, LAST
from pfedst.state.snapshot import Snapshot, name_snapshot, read_snapshot, remove_folder, sync_snapshot, write_snapshot

FINETUNED = "-finetuned"


class RunState:
    """Reads a run's `state/`.

    Args:
        folder: of the state; it may be absent.
    """

    BEST = BEST
    """The name of the snapshot of the best round on validation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def round_name(round_number: int, finetuned: bool = False) -> str:
        """Return the name of the folder of a round."""
        return f"round-{round_number:06d}" + (FINETUNED if finetuned else "")

    @staticmethod
    def round_of(name: str) -> int:
        """Return the number of rounds that are done in a snapshot of that name."""
        return int(name.split("-")[1])

    @staticmethod
    def is_finetuned(name: str) -> bool:
        """Return True if a snapshot of that name was saved after fine-tuning."""
        return name.endswith(FINETUNED)

    def rounds(self) -> list[Path]:
        """Return the folders of saved rounds, whole or not, oldest first; a fine-tuned one follows its round."""
        return sorted(path for path in self.folder.glob("round-*") if re.fullmatch(r"round-\d{6,}(-\w+)?", path.name))

    def whole_rounds(self, finetuned: bool = True) -> Iterator[Snapshot]:
        """Yield the saved rounds that are whole, newest first; a damaged round is skipped with a warning.

        Args:
            finetuned: include fine-tuned rounds; a run cannot continue from them.

        Raises:
            StateError: rounds are saved, and none is whole.
        """
        skipped: list[StateError] = []
        whole = False
        for place in reversed(self.rounds()):
            if not finetuned and self.is_finetuned(place.name):
                continue
            try:
                found = read_snapshot(place)
            except StateError as error:
                skipped.append(error)
                continue
            for reason in skipped:
                logging.getLogger("pfedst").warning("%s; using an older round, %s", reason, place.name)
            skipped, whole = [], True
            yield found
        if skipped and not whole:
            raise skipped[0]

    def is_last(self, name: str) -> bool:
        """Return True if no newer round was saved than the one of that name, whole or not."""
        return self.rounds()[-1].name == name

    def last_round(self) -> Snapshot:
        """Return the newest saved round that is whole.

        Raises:
            StateError: no round is saved, or none that is whole and of this format.
        """
        found = next(self.whole_rounds(), None)
        if found is None:
            raise StateError(
                f"{self.folder} holds no saved round; give the folder of a run that pfedst fit has written"
            )
        return found

    def chosen(self, choice: str) -> tuple[int, Snapshot]:
        """Return the number and the saved state of a round: `last`, `best` on validation, or the number of a kept one.

        The last round, and its number, stand for the state after the fine-tuning that follows it, if there is one.

        Raises:
            ConfigurationError: the choice is none of these; the message lists the rounds that are kept.
            StateError: the state is missing or damaged.
        """
        last = self.last_round()
        if choice == LAST:
            return self.round_of(last.name), last
        best: dict[str, Any] = last.about.get("best", {})
        if choice == BEST and best.get("round") is None:
            raise ConfigurationError(
                f"{self.folder.parent} has no best round, as no site has validation images; use the last round"
            )
        if choice == BEST and self.is_finetuned(last.name) and best["after"] == last.about["after"]:
            return self.round_of(last.name), last
        kept: dict[str, Path] = {str(self.round_of(place.name)): place for place in self.rounds()}
        if best.get("round") is not None:
            kept.setdefault(str(best["round"]), self.folder / BEST)
        place = self.folder / BEST if choice == BEST else kept.get(choice)
        if place is None:
            raise ConfigurationError(
                f"round {choice} of {self.folder.parent} is not kept. Kept are "
                f"{listed(sorted(map(int, kept)), ', ', 20)}; `last` and `best` are names for two of them. "
                f"--coordinator.keep_states sets how many a run keeps"
            )
        found = read_snapshot(place)
        return found.about["round"] if place.name == BEST else int(choice), found


class StateSaver:
    """Saves rounds, and lets the training continue while the disk is busy.

    One snapshot is under way at most: the next one, and the end of the block, wait for it and raise what it raised. A
    process that is killed loses a snapshot that is not whole. The thread does nothing but wait: one that computes would
    take Python's lock from the training in every step.

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
            name: as `RunState` makes it; older rounds are dropped.
            about: facts about the snapshot, as JSON takes them.
            parts: nested dicts of tensors by name.
            first_sync: files that must be on the disk before the snapshot.

        Raises:
            StateError: the disk refuses this snapshot, or refused the one before.
        """
        self.wait()
        final = self.state.folder / name
        with writing(final):
            temporary = write_snapshot(final, about, parts)
            self._saving = self._thread.submit(self._publish, temporary, final, tuple(first_sync))

    def wait(self) -> None:
        """Wait until the last snapshot is on disk.

        Raises:
            StateError: the disk refused it.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _publish(self, temporary: Path, final: Path, first_sync: Sequence[Path]) -> None:
        with writing(final):
            for path in first_sync:
                sync_file(path)
            sync_snapshot(temporary)
            name_snapshot(temporary, final)
            sync_folder(final.parent)
        self._drop_old()

    def _drop_old(self) -> None:
        """Drop old rounds, and a fine-tuned state once its run has continued: no run continues from it."""
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
            self._drop_old()  # an earlier process may have been killed before it did so
