"""The loop over rounds: broadcast, local fit, upload, merge, evaluate."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pfedst.client.client import ClientWork, Evaluate
from pfedst.client.training import LocalTrainer, RoundHooks
from pfedst.data import FederatedDataModule, Split
from pfedst.errors import ConfigurationError, StateError, listed
from pfedst.evaluation import Evaluated
from pfedst.messages.faults import Fault
from pfedst.reporting import RunFolder, RunSummary, percent
from pfedst.reporting.records import check_records
from pfedst.server.local_fits import FitOptions, LocalFits, Reported
from pfedst.server.server import Federation
from pfedst.state import RunState, StateSaver, clear_unfinished
from pfedst.tracking import RunProgress
from pfedst.transport.processes import Executor, ExecutorKind, make_executor

EVALUATED: tuple[Split, ...] = ("validation", "test")
MODELS = ("personal", "generic")

Evaluation = dict[str, dict[str, dict[str, Evaluated]]]
"""split -> model (`personal`, `generic`) -> client -> what it reached."""


@dataclass(frozen=True)
class RoundOptions:
    """What the coordinator is told about rounds; ranges and meaning are its own."""

    rounds: int
    participation: float
    evaluate_every: int
    keep_states: int
    executor: ExecutorKind
    workers: int | None
    threads: int | None
    timeout_seconds: float | None
    fits: FitOptions


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
        self.work = ClientWork(federation, data, local)
        self.executor = make_executor(
            options.executor,
            self.work,
            options.threads,
            options.workers,
            options.timeout_seconds,
        )
        self.hooks = hooks
        self.run_folder = run
        self.saver = StateSaver(run.state, options.keep_states)
        self.summary = summary
        self.rounds = options.rounds if federation.trains else 0
        self.finetune_epochs = federation.method.finetune_epochs if federation.trains else 0
        asked = [len(self._drawn(round_number)) for round_number in range(1, self.rounds + 1)]
        if asked and not federation.method.pooled and options.fits.min_clients > min(asked):
            raise ConfigurationError(
                f"--coordinator.min_clients {options.fits.min_clients}: a round asks {min(asked)} clients only; raise "
                f"--coordinator.participation, or lower it"
            )
        self.progress = RunProgress(sum(asked) + len(federation.drawable) * bool(self.finetune_epochs))
        self.local_fits = LocalFits(options.fits, federation, self.executor, self.saver, self.progress)

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
        """Put the federation in the state of the newest round that is saved and recorded; the records up to it.

        Raises:
            StateError: rounds are saved, and none of them is whole or goes with the records.
        """
        state, run = self.saver.state, self.run_folder
        for folder in (run.path, state.folder):
            clear_unfinished(folder)
        damage: StateError | None = None
        for snapshot in state.whole_rounds(finetuned=False):
            try:
                records = run.records(snapshot.about.get("records", {}))
                done = state.round_of(snapshot.name)
                members, samples = list(self.federation.members), self.summary.protocol["samples"]
                check_records(run.records_file, records, members, samples, done)
            except StateError as error:
                damage = damage or error
                logging.getLogger("pfedst").warning("%s; an older round is looked for", error)
                continue
            self.federation.load_state_parts(snapshot.parts)
            run.keep_records(snapshot.about["records"])
            state.drop_fits(but_of=(done, done + 1))
            return records
        if damage is not None:
            raise damage
        if not run.is_empty:
            logging.getLogger("pfedst").warning("%s: no round is saved; it starts anew", run.path)
        run.keep_records(None)
        state.drop_fits()
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
                counts = row.pop("counts", {})
                for split, models in row.pop("received", {}).items():
                    for model, metrics in models.items():
                        found = Evaluated(metrics, counts[split][model])
                        evaluation.setdefault(split, {}).setdefault(model, {})[name] = found
            reported = Reported(
                {name: row for name, row in rows.items() if row["participated"]},
                {name: row for name, row in rows.items() if "left_out" in row},
            )
            if round_number:
                self.hooks.before_round(self.federation.generic, round_number)
            metrics = self.summary.add_round(round_number, reported.records, reported.left_out, evaluation)
            for row in rows.values():
                if row["participated"] or "left_out" in row:
                    self.progress.fitted(earlier=True)
            if evaluation and round_number:
                stop = self.hooks.after_evaluation(self.federation.generic, round_number, metrics)
        return last, stop

    def _run_rounds(self, done: Sequence[Mapping[str, Any]] | None) -> None:
        self.hooks.start(self.federation.generic)
        last, stop = 0, False
        if done is None:
            self._end_round(0, Reported())
        else:
            last, stop = self._replay(done)
        for round_number in () if stop else range(last + 1, self.rounds + 1):
            self.hooks.before_round(self.federation.generic, round_number)
            if self._end_round(round_number, self._train_round(round_number)):
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

    def _train_round(self, round_number: int) -> Reported:
        evaluate = EVALUATED if self._is_evaluated(round_number) else ()
        doing = f"round {round_number}/{self.rounds}"
        return self.local_fits.run_round(round_number, self._drawn(round_number), doing, evaluate)

    def _is_evaluated(self, round_number: int) -> bool:
        return round_number % self.options.evaluate_every == 0 or round_number == self.rounds

    def _end_round(self, round_number: int, reported: Reported) -> bool:
        """Evaluate if it is time, write the records, save the state; True if a callback asks to stop."""
        evaluation: Evaluation = {}
        if self._is_evaluated(round_number):
            self.progress.say(f"round {round_number}/{self.rounds}, evaluation")
            evaluation = evaluate_received(self.federation, self.executor)
        self._write_records(round_number, reported, evaluation)
        self._save(round_number)
        metrics = self.summary.add_round(round_number, reported.records, reported.left_out, evaluation)
        self.hooks.log(round_number, metrics)
        if not evaluation:
            return False
        self.progress.round_done(
            f"round {round_number}/{self.rounds}: balanced accuracy on validation "
            f"{percent(metrics.get('federation/validation/balanced_accuracy'))} % personal, "
            f"{percent(metrics.get('generic/validation/balanced_accuracy'))} % generic"
            + (f", {listed(list(reported.left_out))} left out" if reported.left_out else "")
        )
        return round_number > 0 and self.hooks.after_evaluation(self.federation.generic, round_number, metrics)

    def _write_records(
        self, round_number: int, reported: Reported, evaluation: Evaluation, finetuned: bool = False
    ) -> None:
        records = []
        for name in self.federation.members:
            record = {"round": round_number, "client": name, "participated": name in reported.records}
            if round_number == 0:
                record["setup_upload_bytes"] = self.summary.setup_upload_bytes
            if finetuned:
                record["finetuned"] = True
            record |= reported.records.get(name, {}) | reported.left_out.get(name, {})
            if evaluation and name in self.federation.clients:
                for key, part in (("received", "metrics"), ("counts", "counts")):
                    record[key] = {
                        split: {model: getattr(clients[name], part) for model, clients in models.items()}
                        for split, models in evaluation.items()
                    }
            records.append(record)
        self.run_folder.add_records(records)

    def _save(self, round_number: int, finetuned: bool = False) -> None:
        self.saver.save(
            RunState.round_name(round_number, finetuned),
            {"records": self.run_folder.mark},
            self.federation.state_parts(),
            first_sync=[self.run_folder.records_file],
        )

    def flops_per_image(self) -> float | None:
        """Of the trainee with the most images, after the last round; None where nothing is trained.

        A client that cannot be trained then is no reason to lose a run.
        """
        if not self.rounds:
            return None
        sizes = {name: self.data.samples(name, "train") for name in self.federation.clients}
        name = max(self.federation.drawable, key=lambda name: sizes.get(name, 0))
        try:
            return self.work.flops_per_image(name)
        except Exception as error:
            logging.getLogger("pfedst").warning("FLOPs are not counted: client %s: %s", name, error)
            return None

    def _finetune(self) -> None:
        """Local epochs after the last merge; nothing is sent after them."""
        last, names = self.summary.last_round, self.federation.drawable
        reported = self.local_fits.finetune(last, names, self.finetune_epochs)
        evaluation = evaluate_received(self.federation, self.executor)
        self._write_records(last, reported, evaluation, finetuned=True)
        self._save(last, finetuned=True)
        self.summary.add_finetuned(evaluation, reported.records, reported.left_out)


def evaluate_received(federation: Federation, executor: Executor, splits: tuple[Split, ...] = EVALUATED) -> Evaluation:
    """Send every client the server's state, then evaluate its personal and the generic model.

    Raises:
        PfedstError: a client could not be evaluated: a mean over the others would say something else each round.
    """
    for name in federation.clients:
        federation.deliver(name)
    tasks = [Evaluate(name, splits) for name in federation.clients]
    found: dict[str, Any] = {}
    for task, result in executor.run(tasks, started=lambda task: None):
        if isinstance(result, Fault):
            result.stop()
        found[task.name] = result
    return {
        split: {model: {name: found[name][split][model] for name in federation.clients} for model in MODELS}
        for split in splits
    }
