"""A run on this machine: builds clients, transport and coordinator from one configuration, and joins them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from pfedst.client.client import Client
from pfedst.client.exchange import start_maker
from pfedst.client.module import FederatedClient, default_optimizer
from pfedst.client.state import SITES
from pfedst.client.training import LocalTrainer, callbacks_of, shows_a_fit
from pfedst.data import FederatedDataModule, Split
from pfedst.errors import ConfigurationError
from pfedst.evaluation.averages import metric_names
from pfedst.messages.transport import Transport
from pfedst.methods.interface import FederatedMethod
from pfedst.options import of_the_study
from pfedst.reporting import RunFolder
from pfedst.server.coordinator import FederatedCoordinator
from pfedst.server.replies import CheckedTransport
from pfedst.server.warm_start import Initial, WarmStart
from pfedst.state.round_choices import LAST, UNDAMAGED
from pfedst.state.run_state import RunState
from pfedst.tracking import RoundHooks, RunLoggers
from pfedst.transport.in_process import InProcess
from pfedst.transport.processes import Processes

EVALUATED: tuple[Split, ...] = ("validation", "test")


class Simulation:
    """A run on this machine, built and checked: everything but its folder. Nothing of it is written yet.

    Attributes:
        coordinator, method, run_seed, study: as given.
        client: answers for all sites; it has no folder yet.
        local: runs the local fits.
        hooks: callbacks and loggers of the run.
        transport: the way to the clients; not open.
        make_start: makes the model that all clients start from.
        init: what the run begins with in place of random tensors; None without a warm start.

    Args:
        coordinator: options of the rounds.
        template: the configured client, without classes.
        data: prepared or not; it is given the encoder's preprocessing here.
        method: the plugin.
        trainer: the configured Trainer; its callbacks and loggers see rounds as steps.
        run_seed: the seed of the run.
        study: the options that results depend on, by dotted key, for the summary; see `pfedst.options`.
        fills_cache: compute missing entries of the tap cache; without, an incomplete cache is not used.
        warm_start: another run, from whose tensors this one begins.

    Raises:
        PfedstError: an error with a remedy.
    """

    def __init__(
        self,
        coordinator: FederatedCoordinator,
        template: FederatedClient,
        data: FederatedDataModule,
        method: FederatedMethod,
        trainer: Trainer,
        run_seed: int,
        study: Mapping[str, Any] | None = None,
        fills_cache: bool = True,
        warm_start: WarmStart | None = None,
    ) -> None:
        self.coordinator, self.method, self.run_seed, self.study = coordinator, method, run_seed, dict(study or {})
        self.local = LocalTrainer(trainer)
        check_local_epochs(self.local, method)
        if warm_start is not None:
            self.study |= warm_start.study if self.study else {}
            data.use_classes(warm_start.classes, all_of_them=True)
        held_out, agreed = coordinator.held_out_sites, of_the_study(self.study)
        shares = coordinator.share_class_counts
        self.client = make_client(
            template, data, method, run_seed, self.local, None, held_out, agreed, fills_cache, shares
        )
        self.client.module.check_optimizer()
        self.init = None if warm_start is None else self._initial(warm_start)
        self.hooks = make_hooks(trainer, self.client.module)
        samples = {site: {split: data.samples(site, split) for split in EVALUATED} for site in data.sites}
        self.hooks.check_monitored(logged_metrics(samples, self.client.names, data.ordinal))
        self.transport = make_transport(coordinator, self.client)
        self.make_start = start_maker(self.client.model)
        coordinator.check(
            CheckedTransport(self.transport), method, self.make_start, run_seed, self.study, init=self.init
        )

    def _initial(self, warm_start: WarmStart) -> Initial:
        """Return what the server begins with; give the frozen tensors of the adapter to the clients."""
        warm_start.check_encoder(self.client.module.encoder.compute_hash())
        model = self.client.model
        init, frozen = warm_start.for_run(model.start(), model.adapter.state_dict())
        self.client.load_frozen(frozen)
        return init

    def fit(self, run: RunFolder, resume: bool = False) -> dict[str, Any]:
        """Train, and leave everything in the run folder; return the content of `summary.json`.

        Args:
            run: where to write.
            resume: continue with what the run folder holds; results are those of a run that was never interrupted.

        Raises:
            PfedstError: an error with a remedy.
        """
        self.client.keep_state_in(run.path / SITES)
        return self.coordinator.fit(
            self.transport,
            self.method,
            self.make_start,
            self.hooks,
            run,
            self.run_seed,
            resume,
            self.study,
            self.client.load_frozen,
            self.init,
        )


def fit(
    coordinator: FederatedCoordinator,
    template: FederatedClient,
    data: FederatedDataModule,
    method: FederatedMethod,
    trainer: Trainer,
    run: RunFolder,
    run_seed: int,
    resume: bool = False,
    study: Mapping[str, Any] | None = None,
    warm_start: WarmStart | None = None,
) -> dict[str, Any]:
    """Build a `Simulation` and run it in a folder; see there for the arguments.

    Returns:
        The content of `summary.json`.

    Raises:
        PfedstError: an error with a remedy.
    """
    made = Simulation(coordinator, template, data, method, trainer, run_seed, study, warm_start=warm_start)
    return made.fit(run, resume)


def evaluate(
    coordinator: FederatedCoordinator,
    template: FederatedClient,
    data: FederatedDataModule,
    method: FederatedMethod,
    trainer: Trainer,
    folder: Path,
    split: Split,
    run_seed: int,
    choice: str = LAST,
    site: str | None = None,
) -> dict[str, Any]:
    """Evaluate a saved round of a run on one split of a data set on this machine.

    The sites may be some of the run or others; images of `split` are enough. Without images of the training split the
    class frequencies of a site are not known, and there are no metrics at its prior.

    Args:
        coordinator, template, data, method, trainer, run_seed: as in `Simulation`, of the run's own configuration.
        folder: the run's folder.
        split: `validation` or `test`.
        choice: the round: `last`, `best` on validation, or the number of one that is kept.
        site: evaluate this site alone, without the images of the others; None for all.

    Raises:
        ConfigurationError: that round is not kept.
        StateError: no state, one that does not fit the configuration, or another encoder than it was trained with.
        DataError: images of a class that the run does not have.
    """
    state = RunState(folder / "state")
    (number, saved), trained = state.chosen(choice), RunFolder(folder).identity()
    if choice == LAST and not state.is_last(saved.name):
        choice = UNDAMAGED
    if classes := trained.get("classes"):
        data.use_classes(classes)
    data.need_only(*(("test",) if split == "test" else ()))  # validation is cut from train where there is none
    if site is not None:
        data.use_sites([site])
    held_out = coordinator.held_out_sites
    shares = coordinator.share_class_counts
    local = LocalTrainer(trainer)
    client = make_client(template, data, method, run_seed, local, folder / SITES, held_out, shares_class_counts=shares)
    client.keeps_predictions = False
    transport = InProcess(client, coordinator.threads)
    start = start_maker(client.model)
    return coordinator.evaluate(
        transport, method, start, folder.name, saved, number, choice, trained, split, run_seed, client.load_frozen
    )


def make_client(
    template: FederatedClient,
    data: FederatedDataModule,
    method: FederatedMethod,
    run_seed: int,
    local: LocalTrainer,
    sites: Path | None,
    held_out: tuple[str, ...] = (),
    study: Mapping[str, Any] | None = None,
    fills_cache: bool = True,
    shares_class_counts: bool = False,
) -> Client:
    """Check the data, then build the client that answers for all sites of a data set, at the start of a run.

    With `fills_cache`, missing rows of the cache are computed here, on the device and with the precision of
    `local`.

    Raises:
        PfedstError: data, options or weights cannot be used.
    """
    data.prepare(template.encoder.preprocessing)
    module = template.build(data.class_names, method, run_seed)
    client = Client(module, data, local, run_seed, sites, held_out, study, shares_class_counts)
    with local.evaluating():
        data.complete_cache(module.encoder, module.model.adapter.needs, local.device, fills_cache)
    return client


def make_transport(coordinator: FederatedCoordinator, client: Client) -> Transport:
    """Make the transport that the coordinator's options name."""
    if coordinator.transport == "in_process":
        return InProcess(client, coordinator.threads)
    pool: Callable[..., Transport] = Processes
    if coordinator.transport == "ray":
        try:
            from pfedst.transport.ray_cluster import RayCluster
        except ImportError as error:
            raise ConfigurationError("--coordinator.transport ray: pip install 'pfedst[ray]'") from error
        pool = RayCluster
    return pool(client, coordinator.threads, coordinator.workers, coordinator.timeout_seconds)


def check_local_epochs(local: LocalTrainer, method: FederatedMethod) -> None:
    """Check that a method can train in so many local epochs.

    Raises:
        ConfigurationError: there are too few.
    """
    if local.epochs < method.fewest_local_epochs:
        raise ConfigurationError(
            f"method {type(method).__name__} trains its parts alternately, which {local.epochs} local epochs a "
            f"round do not allow: set --trainer.max_epochs {method.fewest_local_epochs} or more"
        )


def make_hooks(trainer: Trainer, module: FederatedClient) -> RoundHooks:
    """Make the hooks that show rounds to the callbacks and loggers of a Trainer; their module is a copy."""
    shown = module.around(copy.deepcopy(module.model), module.method)
    shown.make_optimizer = default_optimizer  # one of a configuration refers to everything that was made with it
    callbacks = [callback for callback in callbacks_of(trainer) if not shows_a_fit(callback)]
    return RoundHooks(trainer, shown, callbacks, RunLoggers(list(trainer.loggers)))


def logged_metrics(samples: Mapping[str, Mapping[Any, int]], clients: Sequence[str], ordinal: bool) -> list[str]:
    """Return the names of all metrics that an evaluated round may log; see `docs/tracking.md`.

    Args:
        samples: number of images by site and split.
        clients: their names.
        ordinal: whether the classes are grades.
    """
    found: list[str] = []
    for split in EVALUATED:
        sites = [site for site, sizes in samples.items() if sizes[split]]
        groups = [*(("federation", "generic") if sites else ()), *(f"client/{site}" for site in sites)]
        found += [f"{group}/{split}/{metric}" for group in groups for metric in metric_names(ordinal)]
    return [*found, *(f"client/{name}/train_loss" for name in clients)]
