"""The loop over rounds: broadcast, local fit, upload, merge, evaluate."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pfedst.data import FederatedDataModule, Split
from pfedst.evaluation import Metrics
from pfedst.executor import Executor, ExecutorKind, make_executor
from pfedst.federation import Federation
from pfedst.payload import Payload, payload_bytes
from pfedst.reporting import RunFolder, RunSummary
from pfedst.state import RoundSaver, saved_rounds
from pfedst.tracking import RunProgress
from pfedst.trainer import LocalTrainer, RoundHooks
from pfedst.work import ClientWork, Evaluate, Fit

EVALUATED: tuple[Split, ...] = ("validation", "test")
MODELS = ("personal", "generic")

Evaluation = dict[str, dict[str, dict[str, Metrics]]]
"""split -> model (`personal`, `generic`) -> client -> metrics."""


@dataclass(frozen=True)
class RoundOptions:
    """What the coordinator is told about rounds; ranges and meaning are its own."""

    rounds: int
    participation: float
    optimizer_state: Literal["reset", "keep"]
    evaluate_every: int
    keep_states: int
    executor: ExecutorKind
    workers: int | None
    threads: int | None


class RoundLoop:
    """One run of a federation."""

    def __init__(
        self,
        options: RoundOptions,
        federation: Federation,
        data: FederatedDataModule,
        local: LocalTrainer,
        hooks: RoundHooks,
        run: RunFolder,
        summary: RunSummary,
    ) -> None:
        self.options = options
        self.federation = federation
        self.data = data
        self.local = local
        self.executor = make_executor(
            options.executor, ClientWork(federation, data, local), options.threads, options.workers
        )
        self.hooks = hooks
        self.run_folder = run
        self.saver = RoundSaver(run.state, options.keep_states)
        self.summary = summary
        self.rounds = options.rounds if federation.trains else 0
        self.finetune_epochs = federation.method.finetune_epochs if federation.trains else 0
        fits = sum(len(self._drawn(round_number)) for round_number in range(1, self.rounds + 1))
        self.progress = RunProgress(fits + len(federation.drawable) * bool(self.finetune_epochs))

    def run(self, resume: bool = False) -> None:
        """All rounds, the fine-tuning after them, and an evaluation after the last.

        Args:
            resume: go on after the last round that is saved and recorded, if there is one.

        Raises:
            StateError: what is saved is damaged, or of another federation.
        """
        done = self._restore() if resume else None
        with self.progress, self.saver:
            if done is None:
                self._gather_prototypes()
                self.federation.start()
            with self.executor:
                self._run_rounds(done)

    def _restore(self) -> list[dict[str, Any]] | None:
        """Put the federation in the state of the newest round that is saved and recorded; the records up to it."""
        self.saver.clear_unfinished()
        records, members = self.run_folder.records(), len(self.federation.members)
        for round_number, parts in saved_rounds(self.run_folder.state):
            kept = [record for record in records if record["round"] <= round_number]
            # lines of a round are written before its state, but a machine that loses power may lose them; what was
            # fine-tuned is no start for it
            if len(kept) >= members * (round_number + 1) and not any("finetuned" in record for record in kept):
                self.federation.load_state_parts(parts)
                self.run_folder.keep_records(kept)
                return kept
        if records:
            logging.getLogger("pfedst").warning("%s: no round is saved; it starts anew", self.run_folder.path)
        self.run_folder.keep_records([])
        return None

    def _replay(self, records: Sequence[Mapping[str, Any]]) -> tuple[int, bool]:
        """Show the summary and the callbacks the rounds that are done; the last of them, and if one asked to stop."""
        last, stop = records[-1]["round"], False
        self.summary.resumed_after_round = last
        self.summary.setup_upload_bytes = records[0]["setup_upload_bytes"]
        for round_number, lines in itertools.groupby(records, key=lambda record: record["round"]):
            rows = {record["client"]: dict(record) for record in lines}
            evaluation: Evaluation = {}
            for name, row in rows.items():
                for split, models in row.pop("received", {}).items():
                    for model, metrics in models.items():
                        evaluation.setdefault(split, {}).setdefault(model, {})[name] = metrics
            fitted = {name: row for name, row in rows.items() if row["participated"]}
            if round_number:
                self.hooks.before_round(self.federation.generic, round_number)
            metrics = self.summary.add_round(round_number, fitted, evaluation)
            for _ in fitted:
                self.progress.fitted()
            if evaluation and round_number:
                stop = self.hooks.after_evaluation(self.federation.generic, round_number, metrics)
        return last, stop

    def _run_rounds(self, done: Sequence[Mapping[str, Any]] | None) -> None:
        self.hooks.start(self.federation.generic)
        last, stop = 0, False
        if done is None:
            self._end_round(0, {})
        else:
            last, stop = self._replay(done)
        for round_number in () if stop else range(last + 1, self.rounds + 1):
            self.hooks.before_round(self.federation.generic, round_number)
            records = self._train_round(round_number)
            if self._end_round(round_number, records):
                break
        if self.finetune_epochs:
            self._finetune()
        self.hooks.end(self.federation.generic)

    def _drawn(self, round_number: int) -> list[str]:
        return self.federation.draw(round_number, self.options.participation)

    def _gather_prototypes(self) -> None:
        if self.federation.generic.anchors != "prototypes":
            return
        self.progress.say("class prototypes")

        def batches(name: str) -> Any:
            return self.data.evaluation_loader(name, "train", need="pooled")

        with self.local.evaluating():
            self.federation.gather_prototypes(batches, self.local.device)
        self.summary.setup_upload_bytes = self.federation.setup_upload_bytes

    # -- one round ---------------------------------------------------------------------------------------------

    def _train_round(self, round_number: int) -> dict[str, dict[str, Any]]:
        """Local fits and merges; the records of the clients that took part, by name."""
        records: dict[str, dict[str, Any]] = {}
        names = self._drawn(round_number)
        groups = [[name] for name in names] if self.federation.method.sequential else [names]
        evaluate = EVALUATED if self._is_evaluated(round_number) else ()
        for group in groups:
            received_bytes = {name: self.federation.deliver(name) for name in group}
            messages: dict[str, Payload] = {}
            for name, record in self._fit(group, round_number, f"round {round_number}/{self.rounds}", evaluate):
                messages[name] = self.federation.outgoing(name)
                sent = {"download_bytes": received_bytes[name], "upload_bytes": payload_bytes(messages[name])}
                records[name] = record | sent
            self.federation.merge(messages)
        return {name: records[name] for name in names}

    def _fit(
        self,
        names: Sequence[str],
        round_number: int,
        doing: str,
        evaluate: tuple[Split, ...] = (),
        finetune_epochs: int | None = None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Fit trainees; each with its record as it ends."""
        keep = self.options.optimizer_state == "keep"
        tasks = [Fit(name, round_number, finetune_epochs, keep, evaluate) for name in names]
        for task, record in self.executor.run(tasks, lambda task: self.progress.say(f"{doing}, {task.name}")):
            self.progress.fitted()
            yield task.name, record

    def _is_evaluated(self, round_number: int) -> bool:
        return round_number % self.options.evaluate_every == 0 or round_number == self.rounds

    def _end_round(self, round_number: int, records: Mapping[str, dict[str, Any]]) -> bool:
        """Evaluate if it is time, write the records, save the state; True if a callback asks to stop."""
        evaluation: Evaluation = {}
        if self._is_evaluated(round_number):
            self.progress.say(f"round {round_number}/{self.rounds}, evaluation")
            evaluation = evaluate_received(self.federation, self.executor)
        self._write_records(round_number, records, evaluation)
        if not self.federation.trains or round_number > 0:
            self._save(round_number)
        metrics = self.summary.add_round(round_number, records, evaluation)
        self.hooks.log(round_number, metrics)
        if not evaluation:
            return False
        self.progress.round_done(
            f"round {round_number}/{self.rounds}: balanced accuracy on validation "
            f"{metrics.get('federation/validation/balanced_accuracy', float('nan')):.3f} personal, "
            f"{metrics.get('generic/validation/balanced_accuracy', float('nan')):.3f} generic"
        )
        return round_number > 0 and self.hooks.after_evaluation(self.federation.generic, round_number, metrics)

    def _write_records(self, round_number: int, records: Mapping[str, dict[str, Any]], evaluation: Evaluation) -> None:
        for name in self.federation.members:
            received = {
                split: {model: clients[name] for model, clients in models.items()}
                for split, models in evaluation.items()
                if name in self.federation.clients
            }
            record = {"round": round_number, "client": name, "participated": name in records}
            if round_number == 0:
                record["setup_upload_bytes"] = self.summary.setup_upload_bytes
            self.run_folder.add_record(record | records.get(name, {}) | ({"received": received} if received else {}))

    def _save(self, round_number: int) -> None:
        self.saver.save(round_number, self.federation.state_parts())

    def _finetune(self) -> None:
        """Local epochs after the last merge; nothing is sent after them."""
        last = self.summary.last_round
        records: dict[str, dict[str, Any]] = {}
        names = self.federation.drawable
        for name in names:
            self.federation.deliver(name)
        for name, record in self._fit(names, last, "fine-tuning", finetune_epochs=self.finetune_epochs):
            records[name] = record | {"finetuned": True}
        evaluation = evaluate_received(self.federation, self.executor)
        self._write_records(last, records, evaluation)
        self._save(last)
        self.summary.add_finetuned(evaluation, records)


def evaluate_received(federation: Federation, executor: Executor, splits: tuple[Split, ...] = EVALUATED) -> Evaluation:
    """Send every client the server's state, then evaluate its personal and the generic model."""
    for name in federation.clients:
        federation.deliver(name)
    tasks = [Evaluate(name, splits) for name in federation.clients]
    found = {task.name: result for task, result in executor.run(tasks, started=lambda task: None)}
    return {
        split: {model: {name: found[name][split][model] for name in federation.clients} for model in MODELS}
        for split in splits
    }
