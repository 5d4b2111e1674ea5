"""A site joins a finished run: it trains its own part of the model alone, and keeps it where it is better.

Every shared tensor stays as it is, bit for bit: only personal tensors are given to the optimiser, norm layers with
shared statistics do not update them, and the shared tensors are compared after each pass. A method without personal
tensors trains a copy of the whole model, which is then personal; the merged model beside it stays as it is.

Passes are compared on the validation images of the site by their mean loss at the class prior of the site, which each
image enters. Balanced accuracy would be decided by a few images of rare classes. The generic model is compared at the
same prior, so that training is not credited with what knowing the class frequencies is worth.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pfedst.client.client import Client
from pfedst.client.model import ADAPTER, ClientModel
from pfedst.client.training import LocalTrainer
from pfedst.errors import ConfigurationError, StateError
from pfedst.evaluation.stated import SITE
from pfedst.messages.payload import NET, Payload, State, same_tensors
from pfedst.messages.requests import Request
from pfedst.methods.interface import FederatedMethod
from pfedst.methods.priors import prior_shift
from pfedst.seeds import derive_seed, seeded
from pfedst.tracking import peak_memory_bytes

FEWEST_LABELS = 50
"""Below so many labelled images, train and validation together, validation cannot select."""
FEW_PASSES = 3
"""Passes over the training images where validation cannot select."""
MOST_PASSES = 20

Trains = Literal["personal", "copy"]
"""What a site trains: the personal tensors of the method, or a copy of the whole merged model."""
Kept = tuple[State, dict[str, Any]]
"""Tensors of a client that are not frozen, and its memo."""


def what_joins(method: FederatedMethod, model: ClientModel) -> Trains:
    """Return what a site trains that joins a run of a method.

    Raises:
        ConfigurationError: no site can join.
    """
    if method.joins and model.learnable:
        return "personal" if any(model.kind(key) == "personal" for key in model.learnable) else "copy"
    reason = "its model is trained on the images of all sites in one place"
    if not method.has_generic:
        reason = "it merges nothing, so that there is no generic model to begin with"
    elif not model.learnable:
        reason = "it trains nothing; pfedst test evaluates its run on any site"
    elif not method.pooled:
        reason = "its class declares joins = False"
    raise ConfigurationError(f"pfedst join: no site can join a run of method {type(method).__name__}: {reason}")


@contextmanager
def shared_frozen(model: ClientModel, method: FederatedMethod) -> Iterator[None]:
    """Let fits within the block train personal tensors alone.

    A method that trains its parts in turns repeats the first local epoch that trains a personal tensor.

    Raises:
        ConfigurationError: in no local epoch the method trains one.
        StateError: a shared tensor was changed all the same; it is put back.
    """
    before, finetuning = model.shared_state(), model.finetuning
    model.finetuning = True
    personal = [key for key in model.learnable if model.kind(key) == "personal"]
    for epoch in range(method.fewest_local_epochs):
        model.local_epoch = epoch
        if any(method.trainable(model, key.removeprefix(ADAPTER), epoch) for key in personal):
            break
    else:
        raise ConfigurationError(f"method {type(method).__name__} trains no personal tensor in any local epoch")
    model.joining = epoch
    try:
        yield
    finally:
        model.joining, model.finetuning = None, finetuning
        after = {key: tensor.to(before[key].device) for key, tensor in model.shared_state().items()}
        if not same_tensors(after, before):
            model.load_shared({key: tensor.to(model.device) for key, tensor in before.items()})
            changed = sorted(key for key, tensor in after.items() if not torch.equal(tensor, before[key]))
            raise StateError(f"method {type(method).__name__} changes shared tensors while a site joins: {changed[:8]}")


def start_at_generic(model: ClientModel) -> None:
    """Let a twin begin as the generic model: it was made equal to the adapter, before that was merged."""
    if hasattr(model, "twin"):
        model.twin.load_state_dict(model.adapter.state_dict())


@dataclass(frozen=True)
class Outcome:
    """What a site has after it joined.

    Attributes:
        joined: True if the trained part is kept, False if the generic model is.
        trained: what was trained.
        passes: number of passes over the training images that were chosen.
        labels: number of labelled images, train and validation together.
        losses: mean loss on validation of the generic model, and after each pass; empty if validation did not select.
        gain: mean over validation images by which the chosen pass lowers the loss; None without selection.
        standard_error: of `gain`.
        prior: True if these losses are at the class prior of the site, False if a model's own prior is not known.
        record: of the fit.
    """

    joined: bool
    trained: Trains
    passes: int
    labels: int
    losses: list[float]
    gain: float | None
    standard_error: float | None
    prior: bool
    record: dict[str, Any] = field(repr=False)

    @property
    def selects(self) -> bool:
        """True if validation selected."""
        return bool(self.losses)

    def values(self) -> dict[str, Any]:
        """Everything but the record, ready for JSON."""
        return {key: value for key, value in vars(self).items() if key != "record"}


class Joining:
    """One site that joins.

    Args:
        client: whose data hold the site, with a folder for its state.
        name: the site.
        request: of kind `fit` with epochs of fine-tuning, with the message and the class anchors of the run.
        evaluation: of kind `evaluate`, with class priors too.
        passes: the most passes over the training images, each of the batches of a local epoch, >= 1.
    """

    def __init__(self, client: Client, name: str, request: Request, evaluation: Request, passes: int) -> None:
        self.client, self.name, self.request, self.evaluation = client, name, request, evaluation
        self.trained = what_joins(client.method, client.model)
        data = client.data
        images = data.samples(name, "validation")
        self.labels = data.samples(name, "train") + images
        self.selects = self.labels >= FEWEST_LABELS and images > 1
        self.passes = passes if self.selects else min(passes, FEW_PASSES)
        self._train_loss, self._images, self._skipped = 0.0, 0, 0
        self._start: Kept = {}, {}

    def run(self) -> Outcome:
        """Train, choose a pass, and save the state of the site after it."""
        started = time.perf_counter()
        self._begin()
        self._start, losses = self._kept(), [self._losses(alone=False)] if self.selects else []
        best, chosen = self._start, 0
        for number in range(1, self.passes + 1):
            self._pass(number)
            if not self.selects:
                best, chosen = self._kept(), number
                continue
            losses.append(self._losses(alone=True))
            if chosen == 0 or losses[-1].mean() < losses[chosen].mean():
                best, chosen = self._kept(), number
        gains = losses[0] - losses[chosen] if losses else torch.zeros(2)
        gain, error = float(gains.mean()), float(gains.std() / len(gains) ** 0.5)
        # one standard error: the best of many passes is a little better by chance
        joined = not self.selects or gain > error
        record = {
            "train_loss": self._train_loss,
            "skipped_steps": self._skipped,
            "images": self._images,
            "fit_seconds": time.perf_counter() - started,
            "peak_memory_bytes": peak_memory_bytes(self.client.local.device),
        }
        outcome = Outcome(
            joined,
            self.trained,
            chosen,
            self.labels,
            [float(loss.mean()) for loss in losses],
            gain if losses else None,
            error if losses else None,
            self._has_prior(),
            record,
        )
        self._save(best, outcome, copied=self.trained == "copy", joined=True)
        return outcome

    def keep_generic(self, outcome: Outcome) -> None:
        """Save the generic model in place of the trained one: the personal part at its start."""
        self._save(self._start, outcome, copied=False, joined=False)

    def _begin(self) -> None:
        self.client._restore(self.name, self.request)
        if self.trained == "personal":
            start_at_generic(self.client.model)

    def _kept(self) -> Kept:
        model = self.client.model.move_to("cpu")
        return model.own_state(), copy.deepcopy(model.memo)

    def _pass(self, number: int) -> None:
        """Train on the training images once, or on the batches of a local epoch."""
        client, model, module = self.client, self.client.model, self.client.module
        seeds = [derive_seed(client.run_seed, purpose, self.name, number) for purpose in ("join batches", "join")]
        loader = client.data.train_loader(client.sites_of(self.name), seeds[0])
        with client._unlabelled(self.name), seeded(seeds[1]):
            if self.trained == "personal":
                train_personal(client.local, module, loader)
            else:
                client.local.fit(module, loader, client.method.fewest_local_epochs)
        module.check_trained()
        model.optimizer_state = client.local.trainer.optimizers[0].state_dict()["state"]
        self._train_loss = module.trained_loss()
        self._images += module.images_seen
        self._skipped += module.skipped_steps

    def _losses(self, alone: bool) -> Tensor:
        """Return the cross-entropy (N,) of each validation image; `alone`: the model was trained at this site."""
        client = self.client
        models = {"personal": client.method.personal_model(client.model)}
        _, predictions = client._evaluated(self.name, models, "validation", {})
        logits = predictions.logits("personal").double() + self._shift(alone)
        return F.cross_entropy(logits, predictions.tensors["label"], reduction="none")

    def _shift(self, alone: bool) -> Tensor:
        """Return what is added to the logits (K,) to be at the class prior of the site; zeros if a prior is unknown."""
        if not self._has_prior():
            return torch.zeros(())
        priors = self.client._priors(self.name, self.evaluation, ["personal"], alone)
        effective, target = priors.effective["personal"], priors.targets[SITE]
        assert not isinstance(effective, str)
        assert not isinstance(target, str)
        return prior_shift(effective, target)

    def _has_prior(self) -> bool:
        """True if the class frequencies that both models have learned are known: both are compared alike."""
        of = [self.client._priors(self.name, self.evaluation, ["personal"], alone) for alone in (False, True)]
        return not any(isinstance(priors.effective["personal"], str) for priors in of)

    def _save(self, kept: Kept, outcome: Outcome, copied: bool, joined: bool) -> None:
        """Save the state of the site; unless the whole model is its own, the message holds the shared tensors."""
        client, model = self.client, self.client.model
        model.move_to("cpu").load_own_state(kept[0])
        model.memo, model.optimizer_state = kept[1], None
        message: Payload = {} if copied else {NET: model.shared_state()}
        about = {
            "request": client._digest(self.request),
            "record": outcome.record,
            "finetune_epochs": outcome.passes if copied else 0,
            "joined": joined,
        }
        client._state(self.name).save(self.request.fit_number, about, model, message)


def train_personal(local: LocalTrainer, module: Any, loader: Any) -> None:
    """Train the personal tensors of the model in a module for one pass; see `shared_frozen`."""
    with shared_frozen(module.model, module.method):
        local.fit(module, loader, 1)
