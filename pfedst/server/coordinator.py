"""FederatedCoordinator: rounds of local fits and merges, with evaluation at two named moments."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer

from pfedst.client.client import ClientWork
from pfedst.client.module import FederatedClient
from pfedst.client.training import LocalTrainer
from pfedst.data import FederatedDataModule, Split
from pfedst.errors import ConfigurationError
from pfedst.methods.interface import FederatedMethod
from pfedst.reporting import RunFolder, RunSummary, describe, of_model
from pfedst.reporting.loading import load_compared
from pfedst.server.local_fits import FitOptions
from pfedst.server.rounds import RoundLoop, RoundOptions, evaluate_received
from pfedst.server.server import Federation
from pfedst.state import RunState
from pfedst.tracking import peak_memory_bytes
from pfedst.transport.processes import ExecutorKind, SequentialExecutor
from pfedst.version import __version__


class FederatedCoordinator:
    """Runs the rounds: broadcast, local fit, upload, merge, evaluate.

    Clients are evaluated at two moments. `trained`: after a local fit, before the merge (the personal model of the
    clients that took part). `received`: after the merge, when every client has taken the new shared state (the
    personal and the generic model of every client). The numbers of a summary are `received` after the last round.

    Args:
        rounds: number of rounds, >= 1.
        participation: share of the clients drawn in a round, in (0, 1]; at least one client.
        optimizer_state: of each client's optimiser: `reset` each round, or `keep` it over rounds.
        evaluate_every: evaluate before the first round and after every n-th, >= 1; always after the last.
        keep_states: number of rounds whose state is kept on disk, >= 1.
        executor: clients one after another in this process (`sequential`), or side by side in worker `processes`.
        workers: number of processes, >= 1; default: one a thread of torch, or on GPUs as many as should fit in their
            memory, spread over all that are visible. Not for `sequential`.
        threads: of torch within a local fit, >= 1; default: all that torch has, divided over the workers. The last
            bits of a result depend on it, and on nothing else of these three.
        timeout_seconds: most that a local fit or an evaluation may take, > 0; a client that takes longer is left out of
            its round. Default: any time. For `processes` only: nothing can end a fit in this process.
        save_fits: save each local fit as it ends, so that a run which is killed loses those under way and no other;
            without, it loses its round. A round is saved in any case.
        min_clients: a round in which fewer clients report ends the run, with its state saved, >= 0; with 0 such a round
            changes nothing.
        most_norm_ratio: a client is left out of a round whose message changes what it was sent by more than this many
            times the median over clients (from three clients on), or than what it was sent, > 1 (norms over all
            numbers). Null for no limit.
        held_out_sites: sites that are evaluated like the others and never train: hospitals that join later. Their
            images still count in class prototypes.

    Raises:
        ConfigurationError: an option out of its range.
    """

    def __init__(
        self,
        rounds: int = 20,
        participation: float = 1.0,
        optimizer_state: Literal["reset", "keep"] = "reset",
        evaluate_every: int = 1,
        keep_states: int = 2,
        executor: ExecutorKind = "sequential",
        workers: int | None = None,
        threads: int | None = None,
        timeout_seconds: float | None = None,
        save_fits: bool = True,
        min_clients: int = 1,
        most_norm_ratio: float | None = 1000.0,
        held_out_sites: Sequence[str] = (),
    ) -> None:
        for name, value in (
            ("rounds", rounds),
            ("evaluate_every", evaluate_every),
            ("keep_states", keep_states),
            ("workers", workers),
            ("threads", threads),
        ):
            if value is not None and value < 1:
                raise ConfigurationError(f"--coordinator.{name} {value}: must be 1 or more")
        for name, option in (("workers", workers), ("timeout_seconds", timeout_seconds)):
            if option is not None and executor == "sequential":
                raise ConfigurationError(f"--coordinator.{name} {option}: add --coordinator.executor processes")
        if timeout_seconds is not None and not timeout_seconds > 0:
            raise ConfigurationError(f"--coordinator.timeout_seconds {timeout_seconds}: must be above 0")
        if min_clients < 0:
            raise ConfigurationError(f"--coordinator.min_clients {min_clients}: must be 0 or more")
        if most_norm_ratio is not None and not most_norm_ratio > 1:
            raise ConfigurationError(f"--coordinator.most_norm_ratio {most_norm_ratio}: must be above 1, or null")
        if not 0 < participation <= 1:
            raise ConfigurationError(f"--coordinator.participation {participation}: must be above 0 and at most 1")
        self.options = RoundOptions(
            rounds,
            participation,
            evaluate_every,
            keep_states,
            executor,
            workers,
            threads,
            timeout_seconds,
            FitOptions(optimizer_state == "keep", save_fits, min_clients, most_norm_ratio),
        )
        self.held_out_sites = tuple(held_out_sites)

    def fit(
        self,
        template: FederatedClient,
        data: FederatedDataModule,
        method: FederatedMethod,
        trainer: Trainer,
        run: RunFolder,
        run_seed: int,
        resume: bool = False,
    ) -> dict[str, Any]:
        """Train, evaluate, and leave everything in the run folder.

        Args:
            template: the configured client.
            data: prepared or not; it is given the encoder's preprocessing here.
            method: the plugin.
            trainer: runs the local fits; its callbacks and loggers see rounds as steps.
            run: where to write.
            run_seed: the seed of the run.
            resume: go on with what the run folder holds; results are those of a run that was never interrupted.

        Returns:
            What is written to `summary.json`.
        """
        started = time.perf_counter()
        local = LocalTrainer(trainer)
        if local.epochs < method.fewest_local_epochs:
            raise ConfigurationError(
                f"method {type(method).__name__} trains its parts in turns, which {local.epochs} local epochs a round "
                f"do not allow: set --trainer.max_epochs {method.fewest_local_epochs} or more"
            )
        federation = build_federation(template, data, method, run_seed, self.held_out_sites, local)
        summary = RunSummary(self._describe(federation, data, local))
        with local.detached() as hooks:
            loop = RoundLoop(self.options, federation, data, local, hooks, run, summary)
            summary.protocol["threads"] = loop.executor.threads
            run.identify(identity(federation, data, loop.executor.threads), resume)
            with hooks.loggers.recording(run.path, write_run_report):
                loop.run(resume)
                peak = peak_memory_bytes(local.device)
                summary.flops_per_image = loop.flops_per_image()
                result = summary.result(run.path.name, time.perf_counter() - started, peak)
                run.write_summary(result)
                hooks.loggers.conclude(result)
        return result

    def _describe(self, federation: Federation, data: FederatedDataModule, local: LocalTrainer) -> dict[str, Any]:
        options = self.options
        return describe(federation, data, local, options.rounds, options.participation, options.fits.keep_optimizer)

    def evaluate(
        self,
        template: FederatedClient,
        data: FederatedDataModule,
        method: FederatedMethod,
        trainer: Trainer,
        folder: Path,
        split: Split,
        run_seed: int,
    ) -> dict[str, Any]:
        """Evaluate the last saved round of a run on one split; the table that `fit` ends with, without cost.

        Args:
            template, data, method, trainer, run_seed: as in `fit`, of the run's own configuration.
            folder: the run's folder.
            split: `validation` or `test`.

        Raises:
            StateError: no state, or one that does not fit the configuration.
        """
        local = LocalTrainer(trainer)
        federation = build_federation(template, data, method, run_seed, self.held_out_sites, local)
        saved = RunState(folder / "state").last_round()
        federation.load_state_parts(saved.parts)
        executor = SequentialExecutor(ClientWork(federation, data, local), self.options.threads)
        models = evaluate_received(federation, executor, (split,))[split]
        protocol = self._describe(federation, data, local)
        protocol |= {"split": split, "round": RunState.round_of(saved.name)}
        sizes = {name: data.samples(name, split) for name in federation.clients}
        return {"name": folder.name, "protocol": protocol} | {
            model: of_model(clients, sizes) for model, clients in models.items()
        }


def build_federation(
    template: FederatedClient,
    data: FederatedDataModule,
    method: FederatedMethod,
    run_seed: int,
    held_out_sites: Sequence[str] = (),
    local: LocalTrainer | None = None,
) -> Federation:
    """Check the data, then make server and clients at the run's first state (prototypes still to be gathered).

    What the data are told to cache is computed on the device and with the precision of `local`, by default in float32
    on the CPU.
    """
    data.prepare(template.encoder.preprocessing)
    sizes = {site: data.samples(site, "train") for site in data.sites}
    federation = Federation(template, data.class_names, sizes, method, run_seed, held_out_sites)
    for client in federation.trainees.values():
        if place := method.unlabelled(client):
            data.unlabelled(*place, seed=0)  # what is not there is said before the first round
    with local.evaluating() if local else nullcontext():
        data.cache_taps(federation.encoder, federation.needs, local.device if local else torch.device("cpu"))
    return federation


def write_run_report(folder: Path) -> None:
    """The report of a single run, into its folder."""
    from pfedst.reporting.write import write_files  # which imports matplotlib: a second that few runs need

    write_files(load_compared([folder]), folder / "report")


def identity(federation: Federation, data: FederatedDataModule, threads: int) -> dict[str, Any]:
    """What the bits of a run depend on beside its configuration."""
    return {
        "pfedst": __version__,
        "torch": torch.__version__,
        "encoder": federation.encoder.label,
        "encoder_weights": federation.encoder.compute_hash(),
        "data": data.fingerprint,
        "threads": threads,
    }
