"""Rounds on disk: their records, and the newest one from which a run can continue."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pfedst.errors import StateError
from pfedst.evaluation.evaluate import Evaluated
from pfedst.messages.payload import State
from pfedst.reporting import RunFolder
from pfedst.reporting.records import NOT_EVALUATED, check_records
from pfedst.server.evaluations import Evaluation
from pfedst.server.fits import Reported
from pfedst.server.merged import Merged
from pfedst.server.server import Server
from pfedst.state import clear_unfinished
from pfedst.state.run_state import RunState


@dataclass(frozen=True)
class SavedRound:
    """A saved round that belongs to the records.

    Attributes:
        frozen: the frozen tensors of the adapter that the run was made with.
        merged: which fits the server had merged.
        records: of all rounds up to it, one a line.
        mark: size and hash of these records.
    """

    frozen: State
    merged: Merged
    records: list[dict[str, Any]]
    mark: Mapping[str, Any]


class SavedRounds:
    """The saved rounds of a run, newest first.

    Args:
        run: the run's folder.
        state: its saved states.
        server: into which the state of a round is loaded.
        samples: number of images of every site, by split.
    """

    def __init__(
        self, run: RunFolder, state: RunState, server: Server, samples: Mapping[str, Mapping[str, int]]
    ) -> None:
        self.run, self.state, self.server, self.samples = run, state, server, samples
        self._whole = state.whole_rounds(finetuned=False)

    def newest(self) -> SavedRound | None:
        """Load the newest round that is whole and recorded; None, with a warning, if no round is saved.

        Raises:
            StateError: rounds are saved, and none of them is whole or belongs to the records.
        """
        for folder in (self.run.path, self.state.folder):
            clear_unfinished(folder)
        found = self.older()
        if found is None:
            if not self.run.is_empty:
                logging.getLogger("pfedst").warning("%s: no round is saved; the run starts again", self.run.path)
            self.run.keep_records(None)
        return found

    def older(self, damage: StateError | None = None) -> SavedRound | None:
        """Load the next older round that is whole and recorded; None if no round is saved.

        Args:
            damage: the reason why the last one is not used.

        Raises:
            StateError: `damage`, or the first one that is found, if no such round is left.
        """
        for snapshot in self._whole:
            try:
                records = self.run.records(snapshot.about.get("records", {}))
                done = self.state.round_of(snapshot.name)
                check_records(self.run.records_file, records, self.server.members, self.samples, done)
                merged = Merged.from_about(snapshot.about, self.server.members)
            except StateError as error:
                damage = damage or error
                logging.getLogger("pfedst").warning("%s; using an older round", error)
                continue
            frozen = self.server.load_state_parts(snapshot.parts)
            return SavedRound(frozen, merged, records, snapshot.about["records"])
        if damage is not None:
            raise damage
        return None


def recorded_rounds(records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Reported, Evaluation]]:
    """Yield the number, the fits and the evaluation of every recorded round: the inverse of `round_records`."""
    for round_number, lines in itertools.groupby(records, key=lambda record: record["round"]):
        rows = {record["client"]: dict(record) for record in lines}
        evaluation: Evaluation = {}
        for name, row in rows.items():
            counts, stated = row.pop("counts", {}), row.pop("at_priors", {})
            for split, models in row.pop("received", {}).items():
                for model, metrics in models.items():
                    found = Evaluated(metrics, counts[split][model], stated.get(split, {}).get(model, {}))
                    evaluation.setdefault(split, {}).setdefault(model, {})[name] = found
        reported = Reported(
            {name: row for name, row in rows.items() if row["participated"]},
            {name: row for name, row in rows.items() if "left_out" in row},
        )
        yield round_number, reported, evaluation


def round_records(
    members: Sequence[str],
    round_number: int,
    reported: Reported,
    evaluation: Evaluation,
    setup_upload_bytes: int,
    marks: Mapping[str, Any] | None = None,
    not_evaluated: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Return the lines of a round in `rounds.jsonl`, one a member.

    Args:
        members: the names of all that records are kept of.
        round_number: the round.
        reported: its fits.
        evaluation: empty if the round was not evaluated.
        setup_upload_bytes: for the record of round 0.
        marks: what every line says besides: the factor of a schedule, or that these are the fits of the fine-tuning.
        not_evaluated: kind of the fault, by site that could not be evaluated.
    """
    records, kinds = [], not_evaluated or {}
    for name in members:
        record = {"round": round_number, "client": name, "participated": name in reported.records}
        if round_number == 0:
            record["setup_upload_bytes"] = setup_upload_bytes
        record |= marks or {}
        record |= reported.records.get(name, {}) | reported.left_out.get(name, {})
        record |= {NOT_EVALUATED: kinds[name]} if name in kinds else {}
        for key, part in (("received", "metrics"), ("at_priors", "at_priors"), ("counts", "counts")):
            found = {
                split: {model: getattr(clients[name], part) for model, clients in models.items() if name in clients}
                for split, models in evaluation.items()
            }
            if any(found.values()):
                record[key] = found
        records.append(record)
    return records
