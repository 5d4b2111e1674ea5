"""The local fits of a round: who is asked, what is on disk already, who is left out and why."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pfedst.client.client import Fit
from pfedst.client.state import client_part, load_client_part, part_name
from pfedst.data import Split
from pfedst.errors import StateError, TooFewClientsError, listed
from pfedst.messages.faults import Fault
from pfedst.messages.payload import Payload, payload_bytes
from pfedst.reporting.records import is_fit_record
from pfedst.server.screening import odd_messages
from pfedst.server.server import Federation
from pfedst.state import RunState, StateSaver
from pfedst.tracking import RunProgress
from pfedst.transport.processes import Executor

Record = dict[str, Any]


@dataclass(frozen=True)
class FitOptions:
    """What the coordinator is told about local fits; ranges and meaning are its own."""

    keep_optimizer: bool
    save_fits: bool
    min_clients: int
    most_norm_ratio: float | None


@dataclass
class Reported:
    """What came of the fits of a round.

    Attributes:
        records: of the clients whose messages were merged, by name.
        left_out: of the others that were asked: the kind of fault, and what was sent to them.
    """

    records: dict[str, Record] = field(default_factory=dict)
    left_out: dict[str, Record] = field(default_factory=dict)


class LocalFits:
    """Does the local fits of a round and merges what comes of them.

    A fit that is on disk is not done again: a run that was killed loses those that were under way, and no other. A
    client that raises, sends what no client may send, or does not answer is left out of its round: it gets back what
    it was when the round began, and is asked again when it is drawn again.

    Args:
        options: see there.
        federation: whose clients are fitted.
        executor: does the fits.
        saver: of the run's state.
        progress: is told of each fit.
    """

    def __init__(
        self,
        options: FitOptions,
        federation: Federation,
        executor: Executor,
        saver: StateSaver,
        progress: RunProgress,
    ) -> None:
        self.options = options
        self.federation = federation
        self.executor = executor
        self.saver = saver
        self.progress = progress
        self.numbers = {name: number for number, name in enumerate(sorted(federation.trainees))}
        self._told: set[tuple[str, str]] = set()

    def run_round(self, round_number: int, names: Sequence[str], doing: str, evaluate: tuple[Split, ...]) -> Reported:
        """Fit, and merge the messages of the clients that reported.

        Args:
            round_number: from 1.
            names: of the clients that are asked.
            doing: for the progress.
            evaluate: splits on which the fitted models are evaluated before the merge.

        Raises:
            TooFewClientsError: fewer reported than `min_clients`.
        """
        reported = Reported()
        tasks = [Fit(name, round_number, None, self.options.keep_optimizer, evaluate) for name in names]
        for group in [[task] for task in tasks] if self.federation.method.sequential else [tasks]:
            self._run_group(group, doing, reported)
        self._require_enough(reported, f"round {round_number}")
        reported.records = {name: reported.records[name] for name in names if name in reported.records}
        return reported

    def finetune(self, round_number: int, names: Sequence[str], epochs: int) -> Reported:
        """Fine-tune clients after the last merge; nothing is sent after it.

        Raises:
            TooFewClientsError: fewer were fine-tuned than `min_clients`.
        """
        reported = Reported()
        for name in names:
            self.federation.deliver(name)
        tasks = [Fit(name, round_number, epochs, self.options.keep_optimizer, ()) for name in names]
        for name, result in self._run(tasks, "fine-tuning"):
            if isinstance(result, Fault):
                self._leave_out(name, round_number, result, reported, before=round_number)
            else:
                reported.records[name] = result
        self._require_enough(reported, "fine-tuning")
        return reported

    def _run_group(self, tasks: Sequence[Fit], doing: str, reported: Reported) -> None:
        """Fits whose messages are merged together."""
        federation, round_number = self.federation, tasks[0].round_number
        download = {task.name: federation.deliver(task.name) for task in tasks}
        messages: dict[str, Payload] = {}
        for name, result in self._run(tasks, doing):
            message = result if isinstance(result, Fault) else self._message(name)
            if isinstance(message, Fault):
                self._leave_out(name, round_number, message, reported, before=round_number - 1)
                continue
            assert isinstance(result, dict)
            messages[name] = message
            reported.records[name] = result | {"upload_bytes": payload_bytes(message)}
        received = {name: federation.members[name].received for name in messages}
        for name, error in odd_messages(messages, received, self.options.most_norm_ratio).items():
            del messages[name], reported.records[name]
            self._leave_out(name, round_number, Fault.of(error), reported, before=round_number - 1)
        for name, size in download.items():
            (reported.records.get(name) or reported.left_out[name])["download_bytes"] = size
        if messages:
            federation.merge(messages)

    def _message(self, name: str) -> Payload | Fault:
        try:
            return self.federation.outgoing(name)
        except Exception as error:
            return Fault.of(error)

    def _run(self, tasks: Sequence[Fit], doing: str) -> Iterator[tuple[str, Record | Fault]]:
        """Each trainee with its record as it is there, and its state in place; or with what went wrong."""
        to_do = []
        for task in tasks:
            record = self._on_disk(task)
            if record is None:
                to_do.append(task)
            else:
                self.progress.fitted(earlier=True)
                yield task.name, record
        for done, result in self.executor.run(to_do, lambda task: self.progress.say(f"{doing}, {task.name}")):
            assert isinstance(done, Fit)
            self.progress.fitted()
            if self.options.save_fits and isinstance(result, dict):
                # before the message is made: making it may change what the client keeps
                about = {"task": _json(done), "record": result}
                part = {part_name(done.name): client_part(self.federation.trainees[done.name])}
                self.saver.save(self._name(done), about, part)
            yield done.name, result

    def _name(self, task: Fit) -> str:
        return RunState.fit_name(task.round_number, self.numbers[task.name])

    def _on_disk(self, task: Fit) -> Record | None:
        """The record of a fit that an interrupted run has done, its client put where the fit left it."""
        found = self.saver.state.fit(self._name(task)) if self.options.save_fits else None
        if found is None or found.about.get("task") != _json(task):
            return None
        record, part = found.about.get("record"), found.parts.get(part_name(task.name))
        if not is_fit_record(record) or part is None:
            folder = self.saver.state.folder / found.name
            raise StateError(f"{folder}: not what a run writes; remove that folder, and the client is fitted again")
        client = self.federation.trainees[task.name]
        load_client_part(client, part)
        client.round, client.finetuning = task.round_number, task.finetune_epochs is not None
        return record

    def _leave_out(self, name: str, round_number: int, fault: Fault, reported: Reported, before: int) -> None:
        """Note a fault, tell it once a client and kind with all there is to say, and put the client back."""
        reported.left_out[name] = {"left_out": fault.kind}
        told = f"{fault.kind}, as before" if (name, fault.kind) in self._told else fault.told
        self._told.add((name, fault.kind))
        logging.getLogger("pfedst").warning("client %s is left out of round %d: %s", name, round_number, told)
        self.saver.wait()
        saved = self.saver.state.part(RunState.round_name(before), part_name(name))
        self.federation.put_back(name, saved)

    def _require_enough(self, reported: Reported, when: str) -> None:
        asked = len(reported.records) + len(reported.left_out)
        if len(reported.records) >= min(self.options.min_clients, asked):
            return
        faults = [f"{name} ({record['left_out']})" for name, record in sorted(reported.left_out.items())]
        raise TooFewClientsError(
            f"{when}: {len(reported.records)} of {asked} clients reported, --coordinator.min_clients is "
            f"{self.options.min_clients}; left out: {listed(faults)}. What was done is saved: mend what is said above, "
            f"then go on with the same command, --name and --resume true"
        )


def _json(task: Fit) -> Record:
    """As it comes back from a file."""
    return asdict(task) | {"evaluate": list(task.evaluate)}
