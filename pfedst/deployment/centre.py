"""The centre of a run between hospitals: server, report and records; no images."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from lightning.pytorch import Trainer

from pfedst.client.exchange import start_maker
from pfedst.client.module import FederatedClient
from pfedst.client.training import LocalTrainer
from pfedst.data import FederatedDataModule
from pfedst.data.sets.remote import RemoteSites
from pfedst.deployment.agreement import agreement, check_method, shared_study
from pfedst.deployment.options import FlowerOptions
from pfedst.deployment.runtime import Address, submitted_run
from pfedst.errors import ConfigurationError, listed
from pfedst.methods.interface import FederatedMethod
from pfedst.reporting import RunFolder
from pfedst.server.coordinator import FederatedCoordinator
from pfedst.server.replies import CheckedTransport
from pfedst.simulation import check_local_epochs, logged_metrics, make_hooks
from pfedst.transport.flower import Flower

ONLY_SITES = "data.init_args.only_sites"


class Centre:
    """A run between hospitals, built and checked; a context in which it is connected to the SuperLink.

    Args:
        coordinator: options of the rounds.
        options: the SuperLink and the hospitals.
        template: the configured client, without classes.
        data: names the classes; it has no images.
        method: the plugin.
        trainer: the configured Trainer; its callbacks and loggers see rounds as steps.
        run_seed: the seed of the run.
        study: the options that results depend on, by dotted key.
        local: the options of `data` that may differ from machine to machine and are set, by dotted key.

    Raises:
        ConfigurationError: an option is missing or needs images, or the method cannot run between hospitals.
    """

    def __init__(
        self,
        coordinator: FederatedCoordinator,
        options: FlowerOptions,
        template: FederatedClient,
        data: FederatedDataModule,
        method: FederatedMethod,
        trainer: Trainer,
        run_seed: int,
        study: Mapping[str, Any],
        local: Mapping[str, Any],
    ) -> None:
        if of_images := [f"--{key}" for key in (*local, *(key for key in study if key == ONLY_SITES))]:
            raise ConfigurationError(
                f"{listed(of_images)}: the centre has no images; give such options to pfedst site at each hospital, "
                f"and leave them out of the common file"
            )
        options.check()
        if not isinstance(data, RemoteSites):
            raise ConfigurationError(
                f"--data {type(data).__name__}: the centre of a run between hospitals has no images; give --data "
                f"RemoteSites --data.class_names [NAME, NAME]"
            )
        check_local_epochs(LocalTrainer(trainer), method)
        self.coordinator, self.options, self.method, self.run_seed = coordinator, options, method, run_seed
        self.study = shared_study(study)
        module = template.build(data.class_names, method, run_seed)
        check_method(method, module.model, options.sites)
        module.check_optimizer()
        self.make_start = start_maker(module.model)
        self.hooks = make_hooks(trainer, module)
        self.ordinal = data.ordinal
        self.agreement = agreement(module, list(data.class_names), self.study)
        self._open = ExitStack()
        self._transport: Flower | None = None

    def __enter__(self) -> Centre:
        """Connect, wait for all hospitals, and check that a run with them can begin.

        Raises:
            PfedstError: the SuperLink refuses, or a hospital refuses or does not come.
        """
        options = self.options
        assert options.secret is not None
        link = Address(options.superlink, options.secret, options.root_certificates)
        with ExitStack() as stack:
            grid = stack.enter_context(submitted_run(link))
            timeout = self.coordinator.timeout_seconds
            self._transport = Flower(grid, options.sites, self.agreement, options.wait_seconds, timeout)
            checked = CheckedTransport(self._transport, self.method.has_generic)
            hellos, _ = self.coordinator.check(checked, self.method, self.make_start, self.run_seed, self.study)
            samples = {name: hello.values["samples"] for name, hello in hellos.items()}
            self.hooks.check_monitored(logged_metrics(samples, list(samples), self.ordinal))
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._open.__exit__(kind, error, trace)

    def fit(self, run: RunFolder, resume: bool = False) -> dict[str, Any]:
        """Train, and leave everything that a centre has in the run folder; return the content of `summary.json`.

        Args:
            run: where to write.
            resume: continue with what the run folder holds.

        Raises:
            PfedstError: an error with a remedy.
        """
        assert self._transport is not None, "a Centre is a context"
        return self.coordinator.fit(
            self._transport, self.method, self.make_start, self.hooks, run, self.run_seed, resume, self.study
        )
