"""A hospital joins a finished run: what it begins with, and the folder that it gets, which is like that of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pfedst.client.joining import MOST_PASSES, Joining, Outcome, what_joins
from pfedst.client.module import FederatedClient
from pfedst.client.state import SITES
from pfedst.client.training import LocalTrainer
from pfedst.data import FederatedDataModule
from pfedst.errors import ConfigurationError
from pfedst.joining.source import COMMAND, Source
from pfedst.messages.payload import payload_bytes
from pfedst.messages.requests import Request
from pfedst.methods.interface import FederatedMethod
from pfedst.options import of_the_study
from pfedst.reporting import RunFolder, RunSummary, describe
from pfedst.reporting.join_table import few_labels, join_rows, joined_when, lost_balance
from pfedst.server.agreement import check_hellos, check_prior, identity
from pfedst.server.coordinator import FederatedCoordinator
from pfedst.server.evaluations import EVALUATED, Evaluation, ask_calibration, ask_class_metrics, evaluate_all
from pfedst.server.fits import Reported
from pfedst.server.merged import Merged
from pfedst.server.replies import CheckedTransport
from pfedst.server.saved_rounds import round_records
from pfedst.simulation import make_client
from pfedst.state.run_state import RunState, StateSaver
from pfedst.torch_threads import torch_threads
from pfedst.tracking import peak_memory_bytes
from pfedst.transport.in_process import InProcess

ROUND = 1
"""The round under which the folder of a site that joined keeps its state."""


class Join:
    """A site that joins, built and checked. Nothing is written yet.

    Args:
        source: what it joins.
        template: the configured client, without classes.
        data: holds the images of the site; those of other sites need not be on disk.
        method: the plugin; that of the run, or another one that shares the same tensors.
        local: runs the fits; a pass over the training images is one of its local epochs.
        coordinator: gives the threads.
        run_seed: seed of the run.
        site: name of the site in the data.
        study: the options that results depend on, by dotted key, for the summary.

    Raises:
        PfedstError: an error with a remedy.
    """

    def __init__(
        self,
        source: Source,
        template: FederatedClient,
        data: FederatedDataModule,
        method: FederatedMethod,
        local: LocalTrainer,
        coordinator: FederatedCoordinator,
        run_seed: int,
        site: str,
        study: Mapping[str, Any] | None = None,
    ) -> None:
        if site in source.trained_sites:
            raise ConfigurationError(
                f"{COMMAND} --site {site}: it took part in the run, whose folder holds its own part of the model; use "
                f"pfedst test, or name the folder of the new hospital otherwise"
            )
        if source.pixel_range is not None and source.pixel_range != data.pixel_range:
            raise ConfigurationError(
                f"{source.start.name} was trained with --data.pixel_range {list(source.pixel_range)}: give the same"
            )
        data.use_classes(source.start.classes)
        data.use_sites([site])
        data.need_only("train")
        self.source, self.site, self.run_seed = source, site, run_seed
        self.study = dict(study or {}) | ({**source.start.study, "joined": True} if study else {})
        shares = coordinator.share_class_counts
        agreed = of_the_study(self.study)
        self.client = make_client(
            template, data, method, run_seed, local, None, study=agreed, shares_class_counts=shares
        )
        self.client.threads = coordinator.threads or torch.get_num_threads()
        self.trained = what_joins(method, self.client.model)
        self.client.module.check_optimizer()
        self.server = source.server_for(self.client, [site])
        self.transport = CheckedTransport(InProcess(self.client, coordinator.threads))
        self.hellos = self.transport.hello("")
        check_hellos(self.hellos, None)
        check_prior(self.server, self.hellos)

    def run(
        self, folder: RunFolder, passes: int = MOST_PASSES, configure: Callable[[Outcome], str] | None = None
    ) -> dict[str, Any]:
        """Train, and leave everything in the folder; return the content of `summary.json`.

        Args:
            folder: where to write.
            passes: the most passes over the training images, >= 1.
            configure: returns the configuration that the folder gets, as YAML; None for none.

        Raises:
            PfedstError: an error with a remedy.
        """
        started, client, name = time.perf_counter(), self.client, folder.path.name
        with folder.held(), torch_threads(client.threads):
            generic = self._evaluated(self._request("evaluate", name, evaluate=EVALUATED, generic_only=True))
            client.keep_state_in(folder.path / SITES)
            fit = self._request("fit", name, finetune_epochs=passes)
            joining = Joining(client, self.site, fit, self._request("evaluate", name), passes)
            outcome, finetune_epochs = joining.run(), client.method.finetune_epochs
            if outcome.trained == "copy":
                client.method.finetune_epochs = outcome.passes  # by which any method has models of its own
            own = self._request("evaluate", name, round=ROUND, after=fit.fit_number, evaluate=EVALUATED)
            joined = self._evaluated(own)
            rows = self._rows(generic, joined)
            if not outcome.joined:
                client.method.finetune_epochs = finetune_epochs
                joining.keep_generic(outcome)
                joined = self._evaluated(own)
            made_of = identity(self.hellos) | {"init": dict(self.source.start.about), "joined": self._about(outcome)}
            folder.identify(made_of, resume=False)
            if configure is not None:
                folder.write_config(configure(outcome))
            summary = self._recorded(folder, outcome, generic, joined)
            self._save(folder, fit.fit_number)
            summary.of_predictions = ask_class_metrics(self.transport, name, ROUND, [self.site])
            if client.data.samples(self.site, "validation"):
                summary.calibration = ask_calibration(self.transport, name, ROUND, [self.site], 0)
            result = self._result(summary, name, outcome, rows, time.perf_counter() - started)
            folder.write_summary(result)
        return result

    def _request(self, kind: Any, run: str, **fields: Any) -> Request:
        evaluates, server = kind == "evaluate", self.server
        parts = server.parts_to_evaluate(self.site, True) if evaluates else server.parts_for(self.site)
        return Request(kind, run, parts=parts, **fields)

    def _evaluated(self, request: Request) -> Evaluation:
        kept, self.client.keeps_predictions = self.client.keeps_predictions, not request.generic_only
        try:
            return evaluate_all(self.transport, {self.site: request}, EVALUATED, True)
        finally:
            self.client.keeps_predictions = kept

    def _rows(self, generic: Evaluation, trained: Evaluation) -> dict[str, Any]:
        """Return the numbers of the table by split."""
        return {
            split: join_rows(*(vars(found[split]["personal"][self.site]) for found in (generic, trained)))
            for split in EVALUATED
        }

    def _about(self, outcome: Outcome) -> dict[str, Any]:
        return {"site": self.site, **outcome.values()}

    def _recorded(self, folder: RunFolder, outcome: Outcome, generic: Evaluation, joined: Evaluation) -> RunSummary:
        """Write the records of round 0, the generic model, and of round 1; return the summary of both."""
        made_of, client = identity(self.hellos), self.client
        values = {name: hello.values for name, hello in self.hellos.items()}
        protocol = describe(client.method, self.server.start, values, self.run_seed, (), ROUND, 1.0, True)
        sizes = {key: parameter.numel() for key, parameter in client.model.named_parameters()}
        trains = [k for k in client.model.learnable if self.trained == "copy" or client.model.kind(k) == "personal"]
        protocol |= {"parameters_trained": sum(sizes[key] for key in trains), "parameters_sent": 0}
        content = {key: made_of[key] for key in ("data", "encoder_weights")}
        summary = RunSummary(protocol, self.study, content)
        received = payload_bytes(self.server.parts_for(self.site))
        reported = Reported({self.site: {"upload_bytes": 0, "download_bytes": received, **outcome.record}})
        for number, of_round, evaluation in ((0, Reported(), generic), (ROUND, reported, joined)):
            folder.add_records(round_records([self.site], number, of_round, evaluation, 0))
            summary.add_round(number, of_round.records, {}, evaluation)
        return summary

    def _save(self, folder: RunFolder, fit_number: int) -> None:
        """Save the server, whose tensors are those of the source."""
        after = {self.site: fit_number}
        merged = Merged(after, ROUND, after, [after])
        about = {"records": folder.mark, **merged.about(), **self.server.priors.about()}
        with StateSaver(folder.state, keep=1) as saver:
            saver.save(RunState.round_name(ROUND), about, self.server.state_parts(), [folder.records_file])
            saver.save(RunState.BEST, about | {"round": ROUND}, self.server.state_parts())

    def _result(
        self, summary: RunSummary, name: str, outcome: Outcome, rows: Mapping[str, Any], seconds: float
    ) -> dict[str, Any]:
        result = summary.result(name, seconds, peak_memory_bytes(self.client.local.device))
        result["protocol"] |= {"init": dict(self.source.start.about), "when": joined_when(outcome.values())}
        images = self.client.data.samples(self.site, "validation")
        warnings = [] if outcome.selects else [few_labels(outcome.labels, outcome.passes)]
        warnings += lost_balance(rows, images) if outcome.joined else []
        return result | {"joined": self._about(outcome) | {"rows": rows, "warnings": warnings}}
