"""The client: answers the requests of the server for the sites whose images this process can read."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfedst.adapters import Adapter
from pfedst.client.calibration import calibrate
from pfedst.client.description import describe_process
from pfedst.client.exchange import make_upload
from pfedst.client.model import ClientModel, moved
from pfedst.client.module import FederatedClient
from pfedst.client.predictions import Predictions
from pfedst.client.priors import SitePriors, own_prior, targets_at
from pfedst.client.restore import FirstState, restore
from pfedst.client.state import SiteState
from pfedst.client.training import LocalTrainer
from pfedst.data import FederatedDataModule
from pfedst.data.sites import SPLITS
from pfedst.encoders import class_sums
from pfedst.errors import ConfigurationError
from pfedst.evaluation.evaluate import Evaluated, evaluate
from pfedst.evaluation.stated import NOT_SHARED
from pfedst.messages.payload import State, same_tensors
from pfedst.messages.requests import FEDERATION, MERGED, POOLED, PROTOTYPES, Reply, Request
from pfedst.methods.interface import FederatedMethod
from pfedst.methods.priors import uniform
from pfedst.seeds import derive_seed, seeded
from pfedst.torch_threads import torch_threads
from pfedst.tracking import counted_flops, peak_memory_bytes


class Client:
    """One model for all sites of this process: the state of a site is loaded into it when a request comes.

    At a hospital there is one site; a simulation has many. Memory does not grow with the number of sites.

    Attributes:
        module: the LightningModule around the model.
        generic: the model whose personal tensors stay at their start: with the merged shared tensors it is the model
            that a newly joined hospital gets.
        threads: threads of torch within a request; the last bits of a sum depend on their number.
        keeps_predictions: save the predictions of each evaluation in the folder of the site.
        transductive_sites: held-out sites whose images the method trains on, without their labels.

    Args:
        module: built for the classes of the data and the method.
        data: the images of the sites; prepared.
        local: runs the fits.
        run_seed: the seed of the run.
        sites: the folder for the state of all sites; None keeps no state, for requests that change none.
        held_out: sites that never train.
        study: the options of the study, as this client is configured.
        shares_class_counts: send the class counts of the training split once, in the reply to `hello`.
    """

    def __init__(
        self,
        module: FederatedClient,
        data: FederatedDataModule,
        local: LocalTrainer,
        run_seed: int,
        sites: Path | None,
        held_out: Sequence[str] = (),
        study: Mapping[str, Any] | None = None,
        shares_class_counts: bool = False,
    ) -> None:
        self.module = module
        self.generic = copy.deepcopy(module.model)
        self.data = data
        self.local = local
        self.run_seed = run_seed
        self.sites = sites
        self.held_out = tuple(held_out)
        self.study = dict(study or {})
        self.shares_class_counts = shares_class_counts
        self.threads = torch.get_num_threads()
        self.keeps_predictions = sites is not None
        self._first = FirstState.of(module.model)
        if self.method.pooled and POOLED in data.sites:
            raise ConfigurationError(
                f'method {type(self.method).__name__}: no site may be called "{POOLED}"; rename it'
            )
        self.transductive_sites = sorted({site for name in self.names for site in self._check_unlabelled(name)})

    @property
    def method(self) -> FederatedMethod:
        """The plugin."""
        return self.module.method

    @property
    def model(self) -> ClientModel:
        """The model, in the state of the site of the last request."""
        return self.module.model

    @property
    def names(self) -> list[str]:
        """The names of all clients that this process can answer for."""
        return [*self.data.sites, *([POOLED] if self.method.pooled else [])]

    def sites_of(self, name: str) -> list[str]:
        """Return the sites whose training images a client sees: its own; for a pooled method all that train."""
        if name in self.data.sites:
            return [name]
        # by name: the order in which sites are named in a configuration changes nothing
        return sorted(site for site in self.data.sites if site not in self.held_out)

    def class_counts(self, name: str) -> Tensor:
        """Return the number of training images of each class (K,) that a client sees in an epoch."""
        return torch.tensor(self.data.sampled_counts(self.sites_of(name)))

    def keep_state_in(self, sites: Path) -> None:
        """Keep the state and the predictions of all sites in a folder from now on."""
        self.sites, self.keeps_predictions = sites, True

    def own_memory(self) -> None:
        """Copy the tensors of both models: in a worker process they arrive in memory shared with other workers."""
        self.module.model = copy.deepcopy(self.module.model)
        self.generic = copy.deepcopy(self.generic)

    def load_frozen(self, frozen: State) -> None:
        """Load the frozen tensors of the adapter that a run was made with."""
        for model in (self.model, self.generic):
            model.adapter.load_state_dict(frozen, strict=False)

    # -- requests ----------------------------------------------------------------------------------------------

    def answer(self, name: str, request: Request) -> Reply:
        """Answer one request for one client.

        Raises:
            Exception: whatever goes wrong; the transport decides how much of it leaves this machine.
        """
        answers: dict[str, Callable[[str, Request], Reply]] = {
            "hello": self._hello,
            "prototypes": self._prototypes,
            "fit": self._fit,
            "evaluate": self._evaluate,
            "class_metrics": self._class_metrics,
            "calibrate": self._calibrate,
            "cost": self._cost,
        }
        with torch_threads(self.threads):
            return answers[request.kind](name, request)

    def _hello(self, name: str, request: Request) -> Reply:
        samples = {split: self.data.samples(name, split) for split in SPLITS}
        values = {"samples": samples, "threads": self.threads, **self._description}
        natural, sampled = self.data.class_counts(name, "train"), self.class_counts(name).tolist()
        if self.data.sampler == "class_balanced" and len(set(sampled)) == 1:
            values["balanced_sampling"] = True  # of the images it says that no class is missing
        if self.shares_class_counts:
            values["class_counts"] = {"natural": natural, "sampled": sampled}
        return Reply(values)

    @cached_property
    def _description(self) -> dict[str, Any]:
        return describe_process(self.module, self.data, self.local, self.study, self.transductive_sites)

    def _prototypes(self, name: str, request: Request) -> Reply:
        """Sum the embeddings of the training images by class: K sums and K counts, sent once."""
        encoder, device = self.module.encoder.to(self.local.device), self.local.device
        embeddings, targets = [], []
        with self.local.evaluating():
            for inputs, labels in self.data.evaluation_loader(name, "train", need="pooled"):
                embeddings.append(encoder.taps_of(inputs.to(device), "pooled").tensors[0].cpu())
                targets.append(labels)
        sums, counts = class_sums(torch.cat(embeddings), torch.cat(targets), len(self.data.class_names))
        return Reply({}, {PROTOTYPES: {"sums": sums, "counts": counts}})

    def _fit(self, name: str, request: Request) -> Reply:
        state, self.model.name = self._state(name), name
        digest = self._digest(request)
        reply = state.answered(request.fit_number, digest, self.model) or self._fitted(name, request, digest, state)
        # by name, too: where the server resumed an older round, later fits may be on disk
        state.drop({*request.pinned, request.after, request.fit_number})
        return reply

    def _fitted(self, name: str, request: Request, digest: str, state: SiteState) -> Reply:
        """Run a local fit and save it."""
        self._restore(name, request)
        record = self._train(name, request)
        message = {} if request.finetune_epochs else make_upload(self.model, self.method)
        about = {"request": digest, "record": record, "finetune_epochs": request.finetune_epochs}
        state.save(request.fit_number, about, self.model, message)
        return Reply({"record": record, "repeated": False}, message)

    def _evaluate(self, name: str, request: Request) -> Reply:
        alone = self._restore(name, request)
        models = {"personal": self.method.personal_model(self.model)}
        if request.generic_only:
            models = {"personal": self.generic.adapter}
        elif not self._personalises:
            self._check_is_generic(models["personal"])
        elif self.method.has_generic:
            # the generic model is the adapter itself: a personal model may use private modules, which are not trained
            models["generic"] = self.generic.adapter
        reported = ("personal", "generic") if self.method.has_generic else ("personal",)
        if not request.evaluate:  # asked only whether the state can be read; a pooled client has no images of its own
            return Reply({"evaluated": {}})
        priors, evaluated = self._priors(name, request, models, alone), {}
        for split in request.evaluate:
            found, predictions = self._evaluated(name, models, split, priors.shifts(self.module.prior))
            stated = {m: priors.stated(m, predictions.logits(m), predictions.tensors["label"]) for m in models}
            evaluated[split] = {
                model: vars(found.get(model, found["personal"])) | {"at_priors": stated.get(model, stated["personal"])}
                for model in reported
            }
            if self.keeps_predictions:
                predictions.with_priors(priors).save(self._state(name).folder, split, request.round)
        return Reply({"evaluated": evaluated})

    def _class_metrics(self, name: str, request: Request) -> Reply:
        """Compute what is reported of the site, each class and each subgroup from the predictions that stay here."""
        predictions = Predictions.load(self._state(name).folder, "test", request.round)
        seed = derive_seed(self.run_seed, "bootstrap", name, request.round)
        values = {"class_metrics": predictions.class_metrics(seed), "intervals": predictions.site_metrics(seed)}
        if predictions.subgroups:
            values["subgroups"] = predictions.subgroup_metrics(self.data.subgroups.minimum, seed)
        return Reply(values)

    def _calibrate(self, name: str, request: Request) -> Reply:
        """Fit a temperature and a threshold on the kept predictions on validation, and keep them at the site."""
        folder = self._state(name).folder
        made = calibrate(folder, request.round, request.finetune_epochs > 0)
        made.calibration.save(folder)
        return Reply({"calibration": made.reported})

    def _cost(self, name: str, request: Request) -> Reply:
        """Count the FLOPs of training on one image, in a fit of one batch whose result is thrown away."""
        self._restore(name, request)
        loader = self.data.train_loader(self.sites_of(name), seed=0)
        with self._unlabelled(name), seeded(0), self.local.at_most(1):
            flops = counted_flops(lambda: self.local.fit(self.module, loader))
        return Reply({"flops_per_image": flops / self.module.images_seen})

    # -- state -------------------------------------------------------------------------------------------------

    def _digest(self, request: Request) -> str:
        """Return a hash of all that the reply to a fit depends on but for the images."""
        return f"{request.digest()} {hashlib.sha256(json.dumps([self.run_seed, self.study]).encode()).hexdigest()}"

    def _state(self, name: str) -> SiteState:
        assert self.sites is not None
        return SiteState(self.sites, name)

    def _restore(self, name: str, request: Request) -> bool | None:
        """Put the model in the state after the fit that the server counts, and receive its message.

        Returns:
            True if that fit was on images of the site alone, after the last merge: fine-tuning, or joining a finished
                run. False if the site joined, and keeps the generic model. None for the fit of a round.

        Raises:
            StateError: that state is not on disk, or the message does not fit what is declared shared.
        """
        model = self.model.move_to("cpu")
        self.generic.move_to("cpu")
        model.name, model.round, model.finetuning = name, request.round, request.finetune_epochs > 0
        model.lr_factor = request.lr_factor
        model.class_counts = self.class_counts(name)
        site = self._state(name) if request.after else None
        return restore(model, self.generic, self.method, self._first, site, request)

    def _priors(self, name: str, request: Request, models: Iterable[str], alone: bool | None) -> SitePriors:
        """Return the class priors of the models of a site; `alone`: as `_restore` returns it.

        A model that was not trained has learned no class frequencies: its prior is uniform. The personal model after
        fine-tuning, and that of a method which says so, has those of its site. A merged model has what the server says.
        """
        method, loss = self.method, self.module.loss
        natural = torch.tensor(self.data.class_counts(name, "train"))
        learned = own_prior(loss, method.uses_criterion, self.class_counts(name))
        # the server sends what it knows: for a loss without a prior nothing
        merged = request.priors.get(MERGED, learned if isinstance(learned, str) else NOT_SHARED)
        federation = None if self._personalises else request.priors.get(FEDERATION)
        if method.pooled and not request.generic_only:  # the images of all sites are here: no site sends counts
            counts = self.class_counts(POOLED)
            federation = loss.prior(counts.double())
            if request.round:
                merged = own_prior(loss, method.uses_criterion, counts)
        if not self.model.learnable:
            merged = uniform(len(natural))
        own = merged
        if request.generic_only or alone is False:
            pass
        elif alone or (method.has_own_prior and request.after):
            own = learned
        elif method.has_own_prior:
            own = uniform(len(natural))
        return SitePriors(
            {model: own if model == "personal" else merged for model in models},
            targets_at(loss, natural, federation),
        )

    def _check_unlabelled(self, name: str) -> list[str]:
        """Check where the images without labels of a client come from; return another site than its own."""
        self.model.name = name
        place = self.method.unlabelled(self.model)
        if place is None:
            return []
        if place[0] != name and place[0] not in self.held_out:
            raise ConfigurationError(
                f'method {type(self.method).__name__} uses images of site "{place[0]}" at client {name}: only images '
                f"of held-out sites may be used elsewhere; add --coordinator.held_out_sites [{place[0]}]"
            )
        if "train" in self.data.needed_splits:  # else nothing is trained, and the images need not be here
            self.data.unlabelled(*place, seed=0)  # a missing site or split is reported before the first round
        return [place[0]] if place[0] != name else []

    # -- training and evaluation -------------------------------------------------------------------------------

    def _train(self, name: str, request: Request) -> dict[str, Any]:
        """Run a local fit; return its record."""
        model, module = self.model, self.module
        purpose = "finetune" if model.finetuning else "fit"
        started = time.perf_counter()
        batches_seed = derive_seed(self.run_seed, f"{purpose} batches", name, request.round)
        loader = self.data.train_loader(self.sites_of(name), batches_seed)
        with self._unlabelled(name), seeded(derive_seed(self.run_seed, purpose, name, request.round)):
            self.local.fit(module, loader, request.finetune_epochs or None)
        module.check_trained()
        if request.keep_optimizer:
            model.optimizer_state = self.local.trainer.optimizers[0].state_dict()["state"]
        record: dict[str, Any] = {
            "train_loss": module.trained_loss(),
            "skipped_steps": module.skipped_steps,
            "images": module.images_seen,
            "fit_seconds": time.perf_counter() - started,
            "peak_memory_bytes": peak_memory_bytes(self.local.device),
        }
        if request.evaluate and name in self.data.sites:
            models = {"personal": self.method.personal_model(model)}
            # what has just been trained on the images of one site has learned the frequencies of its classes
            own = own_prior(self.module.loss, self.method.uses_criterion, model.class_counts)
            targets = targets_at(self.module.loss, torch.tensor(self.data.class_counts(name, "train")), None)
            shifts = SitePriors({"personal": own}, targets).shifts(self.module.prior)
            record["trained"] = {
                split: {
                    model: found.metrics for model, found in self._evaluated(name, models, split, shifts)[0].items()
                }
                for split in request.evaluate
            }
        return record

    @contextmanager
    def _unlabelled(self, name: str) -> Iterator[None]:
        """Give the module the batches without labels that its method asks for."""
        if place := self.method.unlabelled(self.model):
            seed = derive_seed(self.run_seed, "unlabelled", name, self.model.round)
            self.module.unlabelled = self.data.unlabelled(*place, seed)
        try:
            yield
        finally:
            self.module.unlabelled = None

    @property
    def _personalises(self) -> bool:
        """True if a client may predict otherwise than the merged model alone: by its method, or by an option of any."""
        method = self.method
        private_statistics = method.norm_statistics == "private" and self.generic.has_personal_tensors
        return method.personalises or method.finetune_epochs > 0 or private_statistics

    def _check_is_generic(self, personal: Adapter) -> None:
        """Check that a method that declares that it does not personalise predicts with the server's model.

        Raises:
            ConfigurationError: it does not, so that the generic model would get the numbers of the personal one.
        """
        if not same_tensors(personal.state_dict(), self.generic.adapter.state_dict()):
            raise ConfigurationError(
                f"method {type(self.method).__name__} declares personalises = False, and client {self.model.name} "
                f"predicts with another model than the server's: declare personalises = True in the class"
            )

    def _evaluated(
        self, name: str, models: Mapping[str, Any], split: Any, shifts: Mapping[str, Tensor]
    ) -> tuple[dict[str, Evaluated], Predictions]:
        """Evaluate models on one split of a site, with one pass of the encoder for all; `shifts`: see `evaluate`."""
        device = self.local.device
        if self.data.samples(name, split):
            self.module.encoder.to(device)
            self.model.move_to(device)
            self.generic.move_to(device)
            for model in models.values():
                moved(model, device).eval()
        batches = self.data.evaluation_loader(name, split)
        with self.local.evaluating():
            found, logits, targets = evaluate(models, self.model.taps_of, batches, device, self.data.ordinal, shifts)
        return found, Predictions.of(self.data, name, split, logits, targets, shifts)
