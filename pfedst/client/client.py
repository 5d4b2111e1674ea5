"""What is done for one client: a local fit, an evaluation. The same code runs in this process and in workers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from pfedst.client.module import FederatedClient
from pfedst.client.training import LocalTrainer
from pfedst.data import FederatedDataModule, Split
from pfedst.evaluation import Evaluated, evaluate
from pfedst.messages.faults import Fault
from pfedst.seeds import derive_seed, seeded
from pfedst.server.server import Federation
from pfedst.tracking import counted_flops, peak_memory_bytes

OfOneClient = dict[str, dict[str, Evaluated]]
"""split -> model (`personal`, `generic`) -> what it reached."""


@dataclass(frozen=True)
class Fit:
    """A local fit of a trainee, which has its message.

    Attributes:
        name: of the trainee.
        round_number: from 1.
        finetune_epochs: epochs of the fine-tuning after the last round; None in a round.
        keep_optimizer: keep the optimiser's state for the next fit.
        evaluate: splits on which the trained model is evaluated afterwards.
    """

    name: str
    round_number: int
    finetune_epochs: int | None
    keep_optimizer: bool
    evaluate: tuple[Split, ...]


@dataclass(frozen=True)
class Evaluate:
    """An evaluation of a client's personal and the generic model, as they are.

    Attributes:
        name: of the client.
        splits: on which.
    """

    name: str
    splits: tuple[Split, ...]


Task = Fit | Evaluate


class ClientWork:
    """Does tasks on the clients of a federation.

    Args:
        federation: whose clients are trained in place.
        data: the images, or what is cached of them.
        local: runs the fits.
    """

    def __init__(self, federation: Federation, data: FederatedDataModule, local: LocalTrainer) -> None:
        self.federation = federation
        self.data = data
        self.local = local

    def do(self, task: Task) -> dict[str, Any]:
        """A fit's record, or an evaluation (see `OfOneClient`)."""
        return self._fit(task) if isinstance(task, Fit) else self._evaluate(task)

    def attempt(self, task: Task) -> dict[str, Any] | Fault:
        """The same, or what went wrong; the client of a fit is then left as it was at that moment.

        Raises:
            ConfigurationError: see `Fault.of`.
        """
        try:
            return self.do(task)
        except Exception as error:
            return Fault.of(error)

    def _fit(self, task: Fit) -> dict[str, Any]:
        client, seed = self.federation.trainees[task.name], self.federation.run_seed
        client.round, client.finetuning = task.round_number, task.finetune_epochs is not None
        purpose = "finetune" if client.finetuning else "fit"
        started = time.perf_counter()
        batches_seed = derive_seed(seed, f"{purpose} batches", task.name, task.round_number)
        loader = self.data.train_loader(self.federation.sites_of(task.name), batches_seed)
        with self._unlabelled(client), seeded(derive_seed(seed, purpose, task.name, task.round_number)):
            self.local.fit(client, loader, task.finetune_epochs)
        client.check_trained()
        if task.keep_optimizer:
            client.optimizer_state = self.local.trainer.optimizers[0].state_dict()["state"]
        record: dict[str, Any] = {
            "train_loss": client.trained_loss(),
            "skipped_steps": client.skipped_steps,
            "images": client.images_seen,
            "fit_seconds": time.perf_counter() - started,
            "peak_memory_bytes": peak_memory_bytes(self.local.device),
        }
        if task.evaluate and task.name in self.federation.clients:
            models = {"personal": client}
            record["trained"] = {
                split: {model: found.metrics for model, found in self._models(task.name, models, split).items()}
                for split in task.evaluate
            }
        return record

    @contextmanager
    def _unlabelled(self, client: FederatedClient) -> Iterator[None]:
        """Give a client the batches without labels that its method asks for."""
        if place := self.federation.method.unlabelled(client):
            seed = derive_seed(self.federation.run_seed, "unlabelled", client.name, client.round)
            client.unlabelled = self.data.unlabelled(*place, seed)
        try:
            yield
        finally:
            client.unlabelled = None

    def flops_per_image(self, name: str) -> float:
        """FLOPs of training on one image of a trainee, which has its message: of a fit of one batch, on a copy."""
        client = self.federation.trainees[name].copy_as(name)
        client.finetuning = False
        loader = self.data.train_loader(self.federation.sites_of(name), seed=0)
        with self._unlabelled(client), seeded(0), self.local.one_batch():
            flops = counted_flops(lambda: self.local.fit(client, loader))
        return flops / client.images_seen

    def _evaluate(self, task: Evaluate) -> dict[str, Any]:
        models = {"personal": self.federation.clients[task.name]}
        if self.federation.personalises:
            models["generic"] = self.federation.generic
        found: OfOneClient = {}
        for split in task.splits:
            of_split = self._models(task.name, models, split)
            found[split] = {model: of_split.get(model, of_split["personal"]) for model in ("personal", "generic")}
        return found

    def _models(self, name: str, models: Mapping[str, FederatedClient], split: Split) -> dict[str, Evaluated]:
        self.federation.encoder.to(self.local.device)
        predictors = {}
        for model, client in models.items():
            client.move_to(self.local.device).eval()
            # the generic model is the adapter itself: a method's predict may use private modules, which it has not
            # trained
            predictors[model] = (
                client.adapter if model == "generic" else partial(self.federation.method.predict, client)
            )
        batches = self.data.evaluation_loader(name, split)
        with self.local.evaluating():
            taps_of, device = self.federation.clients[name].taps_of, self.local.device
            return evaluate(predictors, taps_of, batches, device, self.data.ordinal)


def longest_first(tasks: Sequence[Task], samples: Mapping[str, int]) -> list[Task]:
    """The order in which workers that are free take tasks, so that none ends long after the others."""
    return sorted(tasks, key=lambda task: -samples.get(task.name, 0))
