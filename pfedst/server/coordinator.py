"""FederatedCoordinator: rounds of local fits and merges, with evaluation at two named moments."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from pfedst.errors import ConfigurationError
from pfedst.messages.payload import State
from pfedst.messages.requests import Reply, Request, SplitName
from pfedst.messages.transport import Transport
from pfedst.methods.interface import FederatedMethod
from pfedst.names import plain_names
from pfedst.reporting import RunFolder, RunSummary, chosen_round, describe, of_model
from pfedst.reporting.join_table import joined_when
from pfedst.reporting.loading import load_compared
from pfedst.reporting.run_warnings import what_to_try
from pfedst.reporting.summary import of_stated
from pfedst.reporting.write import write_files
from pfedst.server.agreement import check_hellos, check_new_sites, check_prior, check_same_model, identity, joint_audit
from pfedst.server.evaluations import ask_calibration, ask_class_metrics, evaluate_all
from pfedst.server.fits import FitOptions
from pfedst.server.merged import Merged
from pfedst.server.priors import FederationPriors
from pfedst.server.replies import CheckedTransport
from pfedst.server.rounds import RoundLoop, RoundOptions
from pfedst.server.schedule import Schedule, ScheduleKind
from pfedst.server.server import MakeStart, Server
from pfedst.server.warm_start import Initial
from pfedst.state.round_choices import LAST
from pfedst.state.run_state import RunState
from pfedst.state.snapshot import Snapshot
from pfedst.tracking import RoundHooks, peak_memory_bytes

TransportKind = Literal["in_process", "processes", "ray", "flower"]
LoadFrozen = Callable[[State], None]


class FederatedCoordinator:
    """Runs the rounds: broadcast, local fit, upload, merge, evaluate.

    Clients are evaluated at two moments. `trained`: after a local fit, before the merge (the personal model of the
    clients that took part). `received`: after the merge, when every client has received the new shared state (the
    personal and the generic model of every client). The numbers of a summary are `received` after the last round.

    Args:
        rounds: number of rounds, >= 1.
        participation: share of the clients drawn in a round, in (0, 1]; at least one client.
        optimizer_state: of each client's optimiser: `reset` each round, or `keep` it over rounds.
        lr_schedule: of the learning rates of all local fits, over the rounds after the warm-up: `constant`; `cosine`,
            from 1 to 0.01 times the learning rate; or `step`, times 0.1 after half of them and after three quarters.
            The fine-tuning after the last round is not part of it.
        warmup_rounds: rounds before that in which the learning rates rise linearly, >= 0 and below `rounds`.
        evaluate_every: evaluate before the first round and after every n-th, >= 1; always after the last.
        keep_states: number of rounds whose state is kept on disk, >= 1, besides the best round on validation.
        transport: how requests reach clients: `in_process` (one after another), `processes` (side by side, in worker
            processes), `ray` (the same on the machines of a Ray cluster; see the page Speed of the documentation), or
            `flower` (hospitals, each with its own images; see the page Between hospitals).
        workers: number of worker processes, >= 1. Default for `processes`: one a thread of torch, or on GPUs as many as
            should fit in their memory, spread over all that are visible; for `ray`: as many as the cluster has room
            for. Not for other transports.
        threads: threads of torch within a request, >= 1; default: all that torch has, for `processes` divided over the
            workers. The last bits of a result depend on it, but not on transport and workers.
        timeout_seconds: maximum time of a local fit or an evaluation, > 0; a client that takes longer is excluded from
            the round. Default: no limit. Not for `in_process`: nothing can end a fit in this process.
        min_clients: a round in which fewer clients report ends the run, with its state saved, >= 0; with 0 such a round
            changes nothing.
        most_norm_ratio: a client is left out of a round if its message changes what it was sent by more than this many
            times the median over clients (from three clients on), or than what it was sent, > 1 (norms over all
            numbers). Null for no limit.
        held_out_sites: sites that never train and are evaluated like the others: hospitals that join later. Their
            images and labels are not used elsewhere, not even in class prototypes.
        most_samples: a site counts as at most so many images, in merges with `--method.weighting samples` and in class
            prototypes, >= 1: the number of its images is a site's own claim. Null for no limit.
        share_class_counts: each site sends its number of training images by class, once. With them the server knows the
            class frequencies that a merged model has learned, which a correction for others needs (`--model.prior`).

    Raises:
        ConfigurationError: an option is out of range.
    """

    def __init__(
        self,
        rounds: int = 20,
        participation: float = 1.0,
        optimizer_state: Literal["keep", "reset"] = "keep",
        evaluate_every: int = 1,
        keep_states: int = 2,
        transport: TransportKind = "in_process",
        workers: int | None = None,
        threads: int | None = None,
        timeout_seconds: float | None = None,
        min_clients: int = 1,
        most_norm_ratio: float | None = 1000.0,
        held_out_sites: Sequence[str] = (),
        lr_schedule: ScheduleKind = "constant",
        warmup_rounds: int = 0,
        share_class_counts: bool = False,
        most_samples: int | None = None,
    ) -> None:
        for name, value in (
            ("rounds", rounds),
            ("evaluate_every", evaluate_every),
            ("keep_states", keep_states),
            ("workers", workers),
            ("threads", threads),
            ("most_samples", most_samples),
        ):
            if value is not None and value < 1:
                raise ConfigurationError(f"--coordinator.{name} {value}: must be 1 or more")
        for name, option, kinds in (
            ("workers", workers, ("processes", "ray")),
            ("timeout_seconds", timeout_seconds, ("processes", "ray", "flower")),
        ):
            if option is not None and transport not in kinds:
                raise ConfigurationError(f"--coordinator.{name} {option}: add --coordinator.transport processes")
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
            FitOptions(
                optimizer_state == "keep", min_clients, most_norm_ratio, Schedule(lr_schedule, warmup_rounds, rounds)
            ),
        )
        self.transport: TransportKind = transport
        self.workers = workers
        self.threads = threads
        self.timeout_seconds = timeout_seconds
        self.held_out_sites = tuple(plain_names(held_out_sites))
        self.share_class_counts = share_class_counts
        self.most_samples = most_samples

    def fit(
        self,
        transport: Transport,
        method: FederatedMethod,
        make_start: MakeStart,
        hooks: RoundHooks,
        run: RunFolder,
        run_seed: int,
        resume: bool = False,
        study: Mapping[str, Any] | None = None,
        load_frozen: LoadFrozen | None = None,
        init: Initial | None = None,
    ) -> dict[str, Any]:
        """Train, evaluate, and leave everything in the run folder.

        Args:
            transport: the way to the clients; opened here.
            method: the plugin.
            make_start: makes the model that all clients start from, as far as the server may know it.
            hooks: callbacks and loggers, which see rounds as steps.
            run: where to write.
            run_seed: the seed of the run.
            resume: continue with what the run folder holds; results are those of a run that was never interrupted.
            study: the options that results depend on; every client must have those of the study, too.
            load_frozen: gives the frozen tensors of an adapter that is continued to the clients of this process.
            init: the tensors that the run begins with in place of random ones.

        Returns:
            The content of `summary.json`.

        Raises:
            ConfigurationError: the clients do not agree on classes or options.
        """
        started = time.perf_counter()
        transport = CheckedTransport(transport, method.has_generic)
        hellos, server = self.check(transport, method, make_start, run_seed, study, run.path.name, init)
        made_of = identity(hellos) | ({} if init is None else {"init": dict(init.about)})
        content = {key: made_of[key] for key in ("data", "encoder_weights")}
        protocol = self._describe(server, hellos, made_of)
        summary = RunSummary(protocol, study or {}, content, what_to_try(method, protocol))
        loop = RoundLoop(self.options, server, transport, hooks, run, summary)
        with run.held(), hooks.hearing_errors():
            run.identify(made_of, resume)
            frozen = loop.restore() if resume else None
            if frozen and load_frozen is not None:
                load_frozen(frozen)
            with transport, hooks.loggers.recording(run.path, write_run_report):
                loop.run()
                return _conclude(loop, started)

    def check(
        self,
        transport: Transport,
        method: FederatedMethod,
        make_start: MakeStart,
        run_seed: int,
        study: Mapping[str, Any] | None = None,
        run: str = "",
        init: Initial | None = None,
    ) -> tuple[Mapping[str, Reply], Server]:
        """Return the first reply of every client, and the server, if a run with them can begin; nothing is written.

        Args:
            transport, method, make_start, run_seed, study: as in `fit`.
            run: the run's name, if it has one yet.
            init: as in `fit`.

        Raises:
            ConfigurationError: the clients do not agree on classes or options, or too few are drawn in a round.
        """
        hellos = transport.hello(run)
        server = self._server(hellos, method, make_start, run_seed, study, self.held_out_sites)
        check_prior(server, hellos)
        self.options.check_clients(server)
        if init is not None and init.shared is not None:
            server.warm_start(init.shared, init.anchors)
        return hellos, server

    def evaluate(
        self,
        transport: Transport,
        method: FederatedMethod,
        make_start: MakeStart,
        run: str,
        saved: Snapshot,
        number: int,
        choice: str,
        trained: Mapping[str, Any],
        split: SplitName,
        run_seed: int,
        load_frozen: LoadFrozen,
    ) -> dict[str, Any]:
        """Evaluate a saved round of a run on one split; return the table that `fit` ends with, without cost.

        The sites may be some of the run, and others: a site that was not in the run is evaluated with the generic
        model (`new_sites` in the protocol), and means leave it out beside sites of the run.

        Args:
            transport, method, make_start, run_seed, load_frozen: as in `fit`, of the run's own configuration.
            run: the run's name.
            saved: the state of one of its rounds.
            number: of that round.
            choice: how it was chosen: `last`, `best`, or its number.
            trained: its identity.
            split: `validation` or `test`.

        Raises:
            ConfigurationError: a site that was not in the run, and the method has no generic model.
            StateError: the state does not fit the configuration, or the run was trained with another encoder.
        """
        transport = CheckedTransport(transport, method.has_generic, trains=False)
        hellos = transport.hello(run)
        here = identity(hellos)
        check_same_model(trained, here)
        merged = Merged.from_about(saved.about)
        held_out = [site for site in self.held_out_sites if site in hellos or site not in merged.after]
        new_sites = check_new_sites(hellos, merged, method)
        apart = {*held_out, *new_sites}
        if apart >= hellos.keys():  # nothing to leave them out of
            apart = set()
        server = self._server(hellos, method, make_start, run_seed, None, [site for site in held_out if site in apart])
        load_frozen(server.load_state_parts(saved.parts))
        if saved.about.get("priors") or trained.get("data") != here["data"]:
            # of the data that the run was trained on
            server.priors = FederationPriors.from_about(saved.about, len(here["classes"]))
        check_prior(server, hellos)
        requests = {
            name: Request(
                "evaluate",
                run,
                number,
                merged.after.get(name, 0),
                merged.pinned(name),
                evaluate=(split,),
                # one model for all: its class prior is that of the run, whose images are not these
                generic_only=name in new_sites or (method.pooled and trained.get("data") != here["data"]),
                parts=server.parts_to_evaluate(name, merged.any),
            )
            for name in server.sites
        }
        with transport:
            models = evaluate_all(transport, requests, (split,), method.has_generic)[split]
        protocol = self._describe(server, hellos, trained) | {"split": split, "round": number}
        protocol |= {"held_out_sites": held_out} | ({"new_sites": new_sites} if new_sites else {})
        if choice != LAST:
            protocol |= chosen_round(choice, method.finetune_epochs if RunState.is_finetuned(saved.name) else 0)
        sizes = {name: hellos[name].values["samples"][split] for name in server.sites}
        return {
            "name": run,
            "protocol": protocol,
            "at_priors": {"last": {"round": number, split: of_stated(models, apart)}},
            **{model: of_model(clients, sizes, apart) for model, clients in models.items()},
        }

    def _server(
        self,
        hellos: Mapping[str, Reply],
        method: FederatedMethod,
        make_start: MakeStart,
        run_seed: int,
        study: Mapping[str, Any] | None,
        held_out: Sequence[str],
    ) -> Server:
        """Check that the clients agree, and make the server."""
        check_hellos(hellos, study)
        samples = {name: hello.values["samples"]["train"] for name, hello in hellos.items()}
        counts = {
            name: hello.values["class_counts"] for name, hello in hellos.items() if "class_counts" in hello.values
        }
        balanced = [name for name, hello in hellos.items() if hello.values.get("balanced_sampling")]
        return Server(method, samples, make_start, run_seed, held_out, counts, balanced, self.most_samples)

    def _describe(self, server: Server, hellos: Mapping[str, Reply], made_of: Mapping[str, Any]) -> dict[str, Any]:
        options = self.options
        of_source = {"init": made_of["init"]} if "init" in made_of else {}
        if joined := made_of.get("joined"):
            of_source["when"] = joined_when(joined)
        values = {name: hello.values for name, hello in hellos.items()}
        described = describe(
            server.method,
            server.start,
            values,
            server.run_seed,
            server.held_out,
            options.rounds,
            options.participation,
            options.fits.keep_optimizer,
            None if options.fits.schedule.is_constant else str(options.fits.schedule),
        )
        limit = {} if self.most_samples is None else {"most_samples": self.most_samples}
        return described | {"data_audit": joint_audit(hellos)} | of_source | limit


def _conclude(loop: RoundLoop, started: float) -> dict[str, Any]:
    """Write the summary of a run whose last round is done; return it."""
    hooks, run, summary = loop.hooks, loop.run_folder, loop.summary
    peak = peak_memory_bytes(torch.device(hooks.trainer.strategy.root_device))
    summary.flops_per_image = loop.flops_per_image()
    name, at, samples = run.path.name, summary.evaluated_round, summary.protocol["samples"]
    summary.of_predictions = ask_class_metrics(loop.transport, name, at, summary.evaluated_sites)
    sites = [site for site in summary.evaluated_sites if samples[site]["validation"]]
    summary.calibration = ask_calibration(loop.transport, name, at, sites, loop.finetune_epochs)
    result = summary.result(run.path.name, time.perf_counter() - started, peak)
    run.write_summary(result)
    hooks.loggers.conclude(result)
    return result


def write_run_report(folder: Path) -> None:
    """Write the report of a single run into its folder."""
    write_files(load_compared([folder]), folder / "report")
