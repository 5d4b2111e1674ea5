"""The loop over rounds: request, merge, evaluate, record, save."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pfedst.errors import ConfigurationError, StateError, listed
from pfedst.messages.faults import Fault
from pfedst.messages.payload import State
from pfedst.messages.requests import Kind, Request
from pfedst.messages.transport import Transport
from pfedst.reporting import RunFolder, RunSummary, percent
from pfedst.server.evaluations import EVALUATED, Evaluation, ask_flops, evaluate_sites, require_a_site
from pfedst.server.fits import FitOptions, Fits, Reported
from pfedst.server.merged import Merged
from pfedst.server.saved_rounds import SavedRound, SavedRounds, recorded_rounds, round_records
from pfedst.server.server import Server
from pfedst.state.run_state import RunState, StateSaver
from pfedst.tracking import RoundHooks, RunProgress


@dataclass(frozen=True)
class RoundOptions:
    """Options of the coordinator for rounds; `FederatedCoordinator` documents and checks them."""

    rounds: int
    participation: float
    evaluate_every: int
    keep_states: int
    fits: FitOptions

    def check_clients(self, server: Server) -> None:
        """Check that every round asks enough clients, and that there is a learning rate to schedule.

        Raises:
            ConfigurationError: a round asks fewer clients than must report, or the method trains nothing.
        """
        schedule = self.fits.schedule
        if not server.trains and not schedule.is_constant:
            option = "lr_schedule" if schedule.depends_on_rounds else "warmup_rounds"
            raise ConfigurationError(
                f"--coordinator.{option} has no effect: method {type(server.method).__name__} trains nothing; leave it "
                f"out (in a comparison give this row `coordinator.lr_schedule: constant` and "
                f"`coordinator.warmup_rounds: 0`)"
            )
        if not server.trains or server.method.pooled:
            return
        fewest = min(len(server.draw(number, self.participation)) for number in range(1, self.rounds + 1))
        if self.fits.min_clients > fewest:
            raise ConfigurationError(
                f"--coordinator.min_clients {self.fits.min_clients}: a round asks {fewest} clients only; raise "
                f"--coordinator.participation, or lower it"
            )


class RoundLoop:
    """One run.

    Args:
        options: the options.
        server: the server.
        transport: the way to the clients, open.
        hooks: callbacks and loggers.
        run: where to write.
        summary: collects the summary.
    """

    def __init__(
        self,
        options: RoundOptions,
        server: Server,
        transport: Transport,
        hooks: RoundHooks,
        run: RunFolder,
        summary: RunSummary,
    ) -> None:
        self.options = options
        self.server = server
        self.transport = transport
        self.hooks = hooks
        self.run_folder = run
        self.saver = StateSaver(run.state, options.keep_states)
        self.summary = summary
        self.merged = Merged.none_of(server.members)
        self.rounds = options.rounds if server.trains else 0
        self.finetune_epochs = server.method.finetune_epochs if server.trains else 0
        fits = sum(len(self._drawn(number)) for number in range(1, self.rounds + 1))
        self.progress = RunProgress(fits + len(server.drawable) * bool(self.finetune_epochs))
        self.fits = Fits(options.fits, server, transport, self._request, self.progress)
        self._saved = SavedRounds(run, self.saver.state, server, summary.protocol["samples"])
        self._restored: SavedRound | None = None

    def run(self) -> None:
        """Run all rounds that `restore` has not found, the fine-tuning after them, and an evaluation after the last."""
        with self.progress, self.saver:
            if self._restored is None:
                self._gather_prototypes()
                self.server.begin()
            else:
                self._check_clients()
                self.run_folder.keep_records(self._restored.mark)
            self._run_rounds(None if self._restored is None else self._restored.records)

    def restore(self) -> State | None:
        """Load the newest round that is saved and recorded.

        Returns:
            The frozen tensors of the adapter that the run was made with; None if no round is saved.

        Raises:
            StateError: rounds are saved, and none of them is whole or belongs to the records.
        """
        return self._continue_from(self._saved.newest())

    def _continue_from(self, found: SavedRound | None) -> State | None:
        if found is None:
            return None
        self.merged, self._restored = found.merged, found
        return found.frozen

    def _check_clients(self) -> None:
        """Let every client read the state from which it continues; load an older round while one cannot.

        Raises:
            StateError: a client cannot read its state, and no older round is saved.
        """
        while (damage := self._unreadable_state()) is not None:
            logging.getLogger("pfedst").warning("%s; using an older round", damage)
            self._continue_from(self._saved.older(damage))

    def _unreadable_state(self) -> StateError | None:
        requests = {name: self._request("evaluate", name) for name in self.server.members}
        damage: StateError | None = None
        for _, reply in self.transport.ask(requests, lambda name: None):
            # any other fault comes again with the next fit or evaluation, which names the client
            if isinstance(reply, Fault) and isinstance(reply.error, StateError):
                damage = damage or reply.error
        return damage

    def _replay(self, records: Sequence[Mapping[str, Any]]) -> tuple[int, bool]:
        """Show finished rounds to the summary and the callbacks; return the last one, and if a callback stops."""
        last, stop = records[-1]["round"], False
        self.summary.resumed_after_round = last
        self.summary.setup_upload_bytes = records[0]["setup_upload_bytes"]
        for round_number, reported, evaluation in recorded_rounds(records):
            if round_number:
                self.hooks.before_round(round_number)
            metrics = self._metrics(round_number, reported, evaluation)
            for _ in (*reported.records, *reported.left_out):
                self.progress.fitted(earlier=True)
            if evaluation and round_number:
                stop = self._after_evaluation(round_number, metrics)
        return last, stop

    def _run_rounds(self, done: Sequence[Mapping[str, Any]] | None) -> None:
        self.hooks.start()
        last, stop = 0, False
        if done is None:
            self._end_round(0, Reported())
        else:
            last, stop = self._replay(done)
        for round_number in () if stop else range(last + 1, self.rounds + 1):
            self.hooks.before_round(round_number)
            if self._end_round(round_number, self._train_round(round_number)):
                break
        if self.finetune_epochs:
            self._finetune()
        self.hooks.end()

    def _drawn(self, round_number: int) -> list[str]:
        return self.server.draw(round_number, self.options.participation)

    def _request(self, kind: Kind, name: str, **fields: Any) -> Request:
        """Make a request with the current message to a client, and the state that it continues from."""
        merged, server = self.merged, self.server
        evaluates = kind == "evaluate"
        return Request(
            kind,
            self.run_folder.path.name,
            after=merged.after[name],
            pinned=merged.pinned(name),
            parts=server.parts_to_evaluate(name, merged.any) if evaluates else server.parts_for(name),
            **fields,
        )

    def _gather_prototypes(self) -> None:
        """Merge the class prototypes, for which each site that is not held out sends sums and counts once.

        Raises:
            PfedstError: a site does not reply: without its classes the anchors would be others.
        """
        if not self.server.gathers_prototypes:
            return
        self.progress.say("class prototypes")
        requests = {name: Request("prototypes", self.run_folder.path.name) for name in self.server.training_sites}
        parts: dict[str, State] = {}
        for name, reply in self.transport.ask(requests, lambda name: None):
            if isinstance(reply, Fault):
                reply.stop()
            parts[name] = self.server.check_prototypes(name, reply.parts)
        in_order = [parts[name] for name in self.server.training_sites]
        self.server.merge_prototypes([part["sums"] for part in in_order], [part["counts"] for part in in_order])
        self.summary.setup_upload_bytes = self.server.setup_upload_bytes

    # -- one round ---------------------------------------------------------------------------------------------

    def _train_round(self, round_number: int) -> Reported:
        evaluate = EVALUATED if self._is_evaluated(round_number) else ()
        activity = f"round {round_number}/{self.rounds}"
        reported = self.fits.run_round(round_number, self._drawn(round_number), activity, evaluate)
        self.merged.after |= dict.fromkeys(reported.records, round_number)
        return reported

    def _is_evaluated(self, round_number: int) -> bool:
        return round_number % self.options.evaluate_every == 0 or round_number == self.rounds

    def _end_round(self, round_number: int, reported: Reported) -> bool:
        """Evaluate if it is time, write the records, save the state; return True if a callback asks to stop."""
        evaluation, faults = Evaluation(), dict[str, Fault]()
        if self._is_evaluated(round_number):
            self.progress.say(f"round {round_number}/{self.rounds}, evaluation")
            evaluation, faults = self._evaluate(round_number)
        self._write_records(round_number, reported, evaluation, faults)
        metrics = self._metrics(round_number, reported, evaluation)
        self._report_changes()
        self._save(round_number, self.summary.best_round == round_number)
        self.hooks.log(round_number, metrics)
        if not evaluation:
            return False
        self.progress.round_done(
            f"round {round_number}/{self.rounds}: balanced accuracy on validation "
            f"{percent(metrics.get('federation/validation/balanced_accuracy'))} % personal, "
            f"{percent(metrics.get('generic/validation/balanced_accuracy'))} % generic"
            + (f", {listed(list(reported.left_out))} left out" if reported.left_out else "")
            + (f", {listed(list(faults))} not evaluated" if faults else "")
        )
        return round_number > 0 and self._after_evaluation(round_number, metrics)

    def _metrics(self, round_number: int, reported: Reported, evaluation: Evaluation) -> dict[str, float]:
        """Add a round to the summary; return the metrics for loggers."""
        metrics = self.summary.add_round(round_number, reported.records, reported.left_out, evaluation)
        return metrics | {f"federation/{key}": factor for key, factor in self._scheduled(round_number).items()}

    def _scheduled(self, round_number: int) -> dict[str, float]:
        """Return the factor on the learning rate of a round, where there is a schedule."""
        schedule = self.options.fits.schedule
        return {"lr_factor": schedule.factor(round_number)} if round_number and not schedule.is_constant else {}

    def _report_changes(self) -> None:
        """Log the warnings that an evaluation has raised or ended."""
        for line in self.summary.changes:
            logging.getLogger("pfedst").warning("%s", line)

    def _after_evaluation(self, round_number: int, metrics: Mapping[str, float]) -> bool:
        shared, is_whole = self.server.state.get("net", {}), self.summary.all_evaluated
        return self.hooks.after_evaluation(round_number, metrics, shared, is_whole)

    def _evaluate(self, round_number: int) -> tuple[Evaluation, dict[str, Fault]]:
        """Evaluate all sites; return the evaluation, and the faults of the sites that it excludes.

        Raises:
            NoEvaluationError: no site of the means could be evaluated.
        """
        server = self.server
        requests = {
            name: self._request("evaluate", name, round=round_number, evaluate=EVALUATED) for name in server.sites
        }
        evaluation, faults = evaluate_sites(self.transport, requests, EVALUATED, server.method.has_generic)
        for name, fault in faults.items():
            text = self.fits.faults.text(name, fault)
            logging.getLogger("pfedst").warning(
                "site %s is not evaluated after round %d, and excluded from its means: %s", name, round_number, text
            )
        require_a_site(server.training_sites, faults, f"round {round_number}")
        return evaluation, faults

    def _write_records(
        self,
        round_number: int,
        reported: Reported,
        evaluation: Evaluation,
        faults: Mapping[str, Fault],
        finetuned: bool = False,
    ) -> None:
        marks = {"finetuned": True} if finetuned else self._scheduled(round_number)
        kinds = {name: fault.kind for name, fault in faults.items()}
        members, setup_bytes = self.server.members, self.summary.setup_upload_bytes
        records = round_records(members, round_number, reported, evaluation, setup_bytes, marks, kinds)
        self.run_folder.add_records(records)

    def _save(self, round_number: int, is_best: bool, finetuned: bool = False) -> None:
        """Save the round, and the best round once more under its own name."""
        merged = self.merged
        if not finetuned:
            # two at least: until the newest round is on disk, a run resumes the one before
            merged.kept = [*merged.kept, dict(merged.after)][-max(2, self.options.keep_states) :]
        if is_best:
            merged.best_round, merged.best_after = round_number, dict(merged.after)
        about = {"records": self.run_folder.mark, **merged.about(), **self.server.priors.about()}
        parts = self.server.state_parts()
        files = [self.run_folder.records_file]
        self.saver.save(RunState.round_name(round_number, finetuned), about, parts, first_sync=files)
        if is_best:
            self.saver.save(RunState.BEST, about | {"round": round_number}, parts)

    def flops_per_image(self) -> float | None:
        """Return the FLOPs of training on one image, of the client with the most images; None if nothing is trained."""
        if not self.rounds:
            return None
        samples = self.summary.protocol["samples"]
        name = max(self.server.drawable, key=lambda name: samples[name]["train"] if name in samples else 0)
        return ask_flops(self.transport, name, self._request("cost", name))

    def _finetune(self) -> None:
        """Run local epochs after the last merge; nothing is sent after them."""
        last, names = self.summary.last_round, self.server.drawable
        reported = self.fits.finetune(last, names, self.finetune_epochs)
        before = self.merged
        self.merged = replace(before, after=before.after | dict.fromkeys(reported.records, last + 1))
        evaluation, faults = self._evaluate(last)
        self._write_records(last, reported, evaluation, faults, finetuned=True)
        self.summary.add_finetuned(evaluation, reported.records, reported.left_out)
        self._report_changes()
        if self.summary.best_is_finetuned:
            self.merged = replace(self.merged, best_round=last, best_after=self.merged.after)
        self._save(last, is_best=False, finetuned=True)
        self.merged = before  # from which a run with more rounds continues
