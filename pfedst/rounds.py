"""The loop over rounds: broadcast, local fit, upload, merge, evaluate."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from pfedst.client import FederatedClient
from pfedst.data import FederatedDataModule, Split
from pfedst.evaluation import Metrics, evaluate
from pfedst.federation import Federation
from pfedst.payload import Payload, payload_bytes
from pfedst.reporting import RunFolder, RunSummary
from pfedst.seeds import derive_seed, seeded
from pfedst.state import save_round
from pfedst.tracking import RunProgress, peak_memory_bytes
from pfedst.trainer import LocalTrainer, RoundHooks

EVALUATED: tuple[Split, ...] = ("validation", "test")

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
        self.hooks = hooks
        self.run_folder = run
        self.summary = summary
        self.rounds = options.rounds if federation.trains else 0
        self.finetune_epochs = federation.method.finetune_epochs if federation.trains else 0
        fits = sum(len(self._drawn(round_number)) for round_number in range(1, self.rounds + 1))
        self.progress = RunProgress(fits + len(federation.drawable) * bool(self.finetune_epochs))

    def run(self) -> None:
        """All rounds, the fine-tuning after them, and an evaluation after the last."""
        with self.progress:
            self._gather_prototypes()
            self.federation.start()
            self.hooks.start(self.federation.generic)
            self._end_round(0, {})
            for round_number in range(1, self.rounds + 1):
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
        for group in groups:
            received_bytes = {name: self.federation.deliver(name) for name in group}
            uploads: dict[str, Payload] = {}
            for name in group:
                self.progress.say(f"round {round_number}/{self.rounds}, {name}")
                records[name] = self._fit(name, round_number) | {"download_bytes": received_bytes[name]}
                if self._is_evaluated(round_number) and name in self.federation.clients:
                    records[name]["trained"] = self._evaluate_trained(name)
                uploads[name] = self.federation.collect(name)
                records[name]["upload_bytes"] = payload_bytes(uploads[name])
            self.federation.merge(uploads)
        return records

    def _fit(self, name: str, round_number: int, finetune_epochs: int | None = None) -> dict[str, Any]:
        client, seed = self.federation.trainees[name], self.federation.run_seed
        client.round, client.finetuning = round_number, finetune_epochs is not None
        purpose = "finetune" if client.finetuning else "fit"
        started = time.perf_counter()
        batches_seed = derive_seed(seed, f"{purpose} batches", name, round_number)
        loader = self.data.train_loader(self.federation.sites_of(name), batches_seed)
        if place := self.federation.method.unlabelled(client):
            client.unlabelled = self.data.unlabelled(*place, derive_seed(seed, "unlabelled", name, round_number))
        with seeded(derive_seed(seed, purpose, name, round_number)):
            self.local.fit(client, loader, finetune_epochs)
        client.unlabelled = None
        if self.options.optimizer_state == "keep":
            client.optimizer_state = self.local.trainer.optimizers[0].state_dict()
        self.progress.fitted()
        return {
            "train_loss": client.trained_loss(),
            "fit_seconds": time.perf_counter() - started,
            "peak_memory_bytes": peak_memory_bytes(self.local.device),
        }

    def _is_evaluated(self, round_number: int) -> bool:
        return round_number % self.options.evaluate_every == 0 or round_number == self.rounds

    def _evaluate_trained(self, name: str) -> dict[str, dict[str, Metrics]]:
        models = {"personal": self.federation.clients[name]}
        return {split: _evaluate(self.federation, self.data, self.local, name, models, split) for split in EVALUATED}

    def _end_round(self, round_number: int, records: Mapping[str, dict[str, Any]]) -> bool:
        """Evaluate if it is time, write the records, save the state; True if a callback asks to stop."""
        evaluation: Evaluation = {}
        if self._is_evaluated(round_number):
            self.progress.say(f"round {round_number}/{self.rounds}, evaluation")
            evaluation = evaluate_received(self.federation, self.data, self.local)
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
            self.run_folder.add_record(record | records.get(name, {}) | ({"received": received} if received else {}))

    def _save(self, round_number: int) -> None:
        save_round(self.run_folder.state, round_number, self.federation.state_parts(), self.options.keep_states)

    def _finetune(self) -> None:
        """Local epochs after the last merge; nothing is sent after them."""
        last = self.summary.last_round
        records: dict[str, dict[str, Any]] = {}
        for name in self.federation.drawable:
            self.federation.deliver(name)
            self.progress.say(f"fine-tuning, {name}")
            records[name] = self._fit(name, last, self.finetune_epochs)
        evaluation = evaluate_received(self.federation, self.data, self.local)
        self._write_records(last, records, evaluation)
        self._save(last)
        self.summary.add_finetuned(evaluation, records)


def evaluate_received(
    federation: Federation,
    data: FederatedDataModule,
    local: LocalTrainer,
    splits: Sequence[Split] = EVALUATED,
) -> Evaluation:
    """Send every client the server's state, then evaluate its personal and the generic model."""
    evaluation: Evaluation = {split: {"personal": {}, "generic": {}} for split in splits}
    for name, client in federation.clients.items():
        federation.deliver(name)
        models = {"personal": client} | ({"generic": federation.generic} if federation.personalises else {})
        for split in splits:
            metrics = _evaluate(federation, data, local, name, models, split)
            for model in ("personal", "generic"):
                evaluation[split][model][name] = metrics.get(model, metrics["personal"])
    return evaluation


def _evaluate(
    federation: Federation,
    data: FederatedDataModule,
    local: LocalTrainer,
    name: str,
    models: Mapping[str, FederatedClient],
    split: Split,
) -> dict[str, Metrics]:
    federation.encoder.to(local.device)
    predictors = {}
    for model, client in models.items():
        client.move_to(local.device).eval()
        # the generic model is the adapter itself: a method's predict may use private modules, which it has not trained
        predictors[model] = client.adapter if model == "generic" else partial(federation.method.predict, client)
    with local.evaluating():
        return evaluate(predictors, federation.clients[name].taps_of, data.evaluation_loader(name, split), local.device)
