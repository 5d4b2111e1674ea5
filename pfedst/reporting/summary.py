"""The summary of a run: its numbers and their protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pfedst.evaluation import Metrics, over_clients
from pfedst.evaluation.stated import stated_over_clients
from pfedst.options import Effect, of_the_study, with_effect
from pfedst.reporting.environment import environment
from pfedst.reporting.run_warnings import RunWarnings, start_is_best
from pfedst.state.round_choices import BEST, UNDAMAGED
from pfedst.version import __version__

if TYPE_CHECKING:
    from pfedst.evaluation.evaluate import Evaluated
    from pfedst.methods.interface import FederatedMethod, Start

SELECTION_METRIC = "balanced_accuracy"
FORMAT = 2
"""Of `summary.json` and of the whole run folder. Format 1 had no `study` and kept all state in `state/`."""
PRIOR = "none: logits as the model gives them"
"""How class priors enter predictions."""
CALIBRATION_BINS = "15 of equal width, the last one with 1"
"""The bins of calibration errors. Summaries without this word are of a version that put confidence 1 elsewhere."""


def describe(
    method: FederatedMethod,
    start: Start,
    sites: Mapping[str, Mapping[str, Any]],
    run_seed: int,
    held_out: Sequence[str],
    rounds: int,
    participation: float,
    keep_optimizer: bool,
    schedule: str | None = None,
) -> dict[str, Any]:
    """Return the protocol of a run, before its first round.

    Args:
        method: the plugin.
        start: the model that all clients start from.
        sites: by name, the values of each site's reply to `hello`.
        run_seed: the seed of the run.
        held_out: sites that never train.
        rounds: number of rounds.
        participation: share of the clients drawn in a round.
        keep_optimizer: whether optimisers keep their state over rounds.
        schedule: of the learning rate over rounds, in words; None for none.
    """
    first = next(iter(sites.values()))
    finetuning = method.finetune_epochs if start.trains else 0
    counts = {name: sites[name]["class_counts"]["natural"] for name in sorted(sites) if "class_counts" in sites[name]}
    return {
        "method": type(method).__name__,
        "method_options": method.options,
        "adapter": start.adapter,
        "anchors": start.anchors or "none",
        **first["protocol"],
        "classes": list(first["classes"]),
        "clients": "all",
        "samples": {name: dict(sites[name]["samples"]) for name in sorted(sites)},
        "seed": run_seed,
        "seeds": 1,
        "rounds": rounds if start.trains else 0,
        "round": 0,
        "optimizer_state": "keep" if keep_optimizer else "reset",
        **({} if schedule is None else {"lr_schedule": schedule}),
        "participation": participation,
        "held_out_sites": list(held_out),
        "pooled": method.pooled,
        "weighting": method.weighting,
        "split": "test",
        "when": _when("the last merge", finetuning),
        "personal": "merged shared tensors with the client's own personal tensors",
        "generic": "merged shared tensors with personal tensors at their start: what a new client gets; the personal "
        "model of a method that does not personalise, none of one that merges nothing",
        "personalises": method.personalises,
        "selection": f"none: the last round; best_on_validation takes the round with the highest mean validation "
        f"{SELECTION_METRIC} of the personal model, and its test metrics are only reported",
        "averaging": "macro metrics over the classes present in a client's targets; std is the population's",
        "threads": first["threads"],
        "parameters_trained": start.parameters_trained,
        "parameters_sent": start.parameters_sent,
        **({"class_counts": counts} if counts else {}),
    }


def _when(merge: str, finetuning: int) -> str:
    if finetuning:
        return f"after {merge} and {finetuning} local fine-tuning epochs"
    return f"after {merge}, before local training (`received`)"


def chosen_round(choice: str, finetuning: int = 0) -> dict[str, Any]:
    """Return what differs in the protocol of numbers that are not of the last round.

    Args:
        choice: `best`, `undamaged`, or the number of the round.
        finetuning: epochs of the fine-tuning that followed it.
    """
    selections = {
        BEST: f"the evaluated round with the highest mean validation {SELECTION_METRIC} of the personal model, the "
        f"first of equal ones; test is only reported",
        UNDAMAGED: "none: the newest round whose saved state is not damaged, since that of the last round is",
    }
    return {
        "round_choice": choice,
        "when": _when("the merge of that round", finetuning),
        "selection": selections.get(choice, "none: a round that was named"),
    }


@dataclass(frozen=True)
class _Evaluated:
    """The evaluation after a round, and the metrics of the trained models before its merge, by client."""

    round: int
    evaluation: Mapping[str, Any]
    trained: Mapping[str, Metrics]
    held_out: Collection[str]
    finetuned: bool = False
    missing: Collection[str] = ()

    @property
    def scores(self) -> dict[str, float]:
        """The selection metric of each site that trains and has validation images."""
        sites = self.evaluation["validation"]["personal"] if self.evaluation else {}
        found = {site: sites[site].metrics[SELECTION_METRIC] for site in sorted(sites) if site not in self.held_out}
        return {site: value for site, value in found.items() if value is not None}

    @property
    def score(self) -> float | None:
        """The score that best_on_validation selects by; None if no client has validation images."""
        return fmean(self.scores.values()) if self.scores else None

    def is_comparable(self, other: _Evaluated) -> bool:
        """Return True if both scores are means over the same sites."""
        return self.scores.keys() == other.scores.keys()

    def or_better(self, before: _Evaluated) -> _Evaluated:
        """Return the better of the two; if they are equal, the earlier one.

        Rounds are compared over the same sites only: of two with other sites, the one with more sites is taken.
        """
        if not self.is_comparable(before):
            return self if len(self.scores) > len(before.scores) else before
        return self if self.score is not None and before.score is not None and self.score > before.score else before


class RunSummary:
    """Collects the content of `summary.json`, round by round; of evaluations the last and the best are kept.

    Args:
        protocol: the return value of `describe`.
        options: the options that results depend on and that differ from their defaults, by dotted key.
        content: hashes of the images and of the encoder's weights: `data` and `encoder_weights`.
        to_try: options that may help if there are warnings.

    Attributes:
        changes: lines on the warnings that the last evaluation raised or ended.
    """

    def __init__(
        self,
        protocol: dict[str, Any],
        options: Mapping[str, Any],
        content: Mapping[str, Any] | None = None,
        to_try: Sequence[str] = (),
    ) -> None:
        self.options = dict(options)
        self.content = dict(content or {})
        self.cost = {key: protocol.pop(key) for key in ("parameters_trained", "parameters_sent")}
        self.protocol = protocol
        self._held_out = frozenset(protocol["held_out_sites"])
        self.to_try = list(to_try)
        self.changes: list[str] = []
        self._warnings = RunWarnings(protocol["classes"], self._held_out, self.to_try)
        self.last_round = 0
        self.setup_upload_bytes = 0
        self.resumed_after_round: int | None = None
        self.trained_rounds = 0
        self.upload_bytes = 0
        self.download_bytes = 0
        self.fit_seconds = 0.0
        self.images_trained = 0
        self.flops_per_image: float | None = None
        self.of_predictions: dict[str, Any] = {"class_metrics": {}, "intervals": {}, "subgroups": {}}
        self.calibration: dict[str, Any] = {}
        self.peak_memory_bytes = 0
        self.skipped_steps = 0
        self.left_out: dict[str, Counter[str]] = {}
        self.not_evaluated: dict[str, list[int]] = {}
        self._last = _Evaluated(0, {}, {}, self._held_out)
        self._first = self._last
        self._best_before = self._last

    def add_round(
        self,
        round_number: int,
        records: Mapping[str, dict[str, Any]],
        left_out: Mapping[str, dict[str, Any]],
        evaluation: Mapping[str, Any],
    ) -> dict[str, float]:
        """Add the records of a round, of clients that reported and of clients that were left out, and its evaluation.

        Args:
            round_number: the round.
            records: by client, of those whose message was merged.
            left_out: by client, of the others that were asked.
            evaluation: split -> model -> client; empty if the round was not evaluated.

        Returns:
            The metrics for loggers.
        """
        self.last_round = round_number
        if records or left_out:
            self.trained_rounds += 1
            self.upload_bytes += sum(record["upload_bytes"] for record in records.values())
            self.download_bytes += sum(r["download_bytes"] for r in (*records.values(), *left_out.values()))
        self._add_cost(records, left_out)
        logged = {f"client/{name}/train_loss": float(record["train_loss"]) for name, record in records.items()}
        if left_out:
            logged["federation/left_out"] = float(len(left_out))
        self.changes = []
        if not evaluation:
            return logged
        trained = {name: r["trained"]["test"]["personal"] for name, r in records.items() if "trained" in r}
        self._best_before = self._last.or_better(self._best_before)
        missing = self._missing(round_number, evaluation)
        self._last = _Evaluated(round_number, evaluation, trained, self._held_out, missing=missing)
        if missing:
            logged["federation/not_evaluated"] = float(len(missing))
        self.changes = self._warnings.add(round_number, evaluation)
        self._first = self._first if self._first.evaluation else self._last
        return logged | self._logged(evaluation)

    def _missing(self, round_number: int, evaluation: Mapping[str, Any]) -> list[str]:
        """Note the sites that could not be evaluated after a round; return them."""
        missing = sorted(self.protocol["samples"].keys() - evaluation["test"]["personal"].keys())
        for name in missing:
            rounds = self.not_evaluated.setdefault(name, [])
            if round_number not in rounds:  # it is there already if the round was evaluated before the fine-tuning
                rounds.append(round_number)
        return missing

    @property
    def best_round(self) -> int | None:
        """The round with the best validation so far; None if no client has validation images."""
        best = self._last.or_better(self._best_before)
        return None if best.score is None else best.round

    @property
    def best_is_finetuned(self) -> bool:
        """True if the best evaluation so far is the one after fine-tuning."""
        return self._last.finetuned and self._last.or_better(self._best_before) is self._last

    @property
    def evaluated_round(self) -> int:
        """The round of the last evaluation."""
        return self._last.round

    @property
    def evaluated_sites(self) -> list[str]:
        """The sites of the last evaluation, sorted."""
        return sorted(self._last.evaluation["test"]["personal"])

    @property
    def all_evaluated(self) -> bool:
        """True if the last evaluation is of all sites."""
        return not self._last.missing

    def add_finetuned(
        self,
        evaluation: Mapping[str, Any],
        records: Mapping[str, dict[str, Any]],
        left_out: Mapping[str, dict[str, Any]],
    ) -> None:
        """Add the evaluation after fine-tuning, which is the last one."""
        self._best_before = self._last.or_better(self._best_before)
        missing = self._missing(self._last.round, evaluation)
        self._last = replace(self._last, evaluation=evaluation, finetuned=True, missing=missing)
        self.changes = self._warnings.add(self._last.round, evaluation, " after fine-tuning")
        self._add_cost(records, left_out)

    def _add_cost(self, records: Mapping[str, dict[str, Any]], left_out: Mapping[str, dict[str, Any]]) -> None:
        self.fit_seconds += sum(record["fit_seconds"] for record in records.values())
        self.images_trained += sum(record["images"] for record in records.values())
        self.skipped_steps += sum(record["skipped_steps"] for record in records.values())
        peaks = [record["peak_memory_bytes"] or 0 for record in records.values()]
        self.peak_memory_bytes = max([self.peak_memory_bytes, *peaks])
        for name, record in left_out.items():
            self.left_out.setdefault(name, Counter())[record["left_out"]] += 1

    def result(self, name: str, total_seconds: float, peak_memory_bytes: int | None) -> dict[str, Any]:
        """Return the content of `summary.json`.

        Args:
            name: of the run.
            total_seconds: of the run, since it was started or resumed.
            peak_memory_bytes: of this process; the summary holds the highest value of all processes that trained.
        """
        last, rounds = self._last, max(1, self.trained_rounds)
        return {
            "format": FORMAT,
            "pfedst_version": __version__,
            "environment": environment(),
            "name": name,
            "study": of_the_study(self.options),
            "last_digits": with_effect(self.options, Effect.LAST_DIGITS),
            "content": self.content,
            "evaluated": {"round": last.round, "split": "test", "prior": self.prior, "bins": CALIBRATION_BINS},
            "protocol": self.protocol | {"round": last.round},
            **self._models(last.evaluation, "test"),
            **self.of_predictions,
            "calibration": self.calibration,
            "validation": self._models(last.evaluation, "validation"),
            "at_priors": {"first": self._stated(self._first), "last": self._stated(last)},
            "best_on_validation": self._best_on_validation(),
            "trained": self._trained(last),
            "warnings": (warnings := self._all_warnings()),
            "to_try": self.to_try if warnings else [],
            "left_out": {name: dict(sorted(kinds.items())) for name, kinds in sorted(self.left_out.items())},
            **({"not_evaluated": dict(sorted(self.not_evaluated.items()))} if self.not_evaluated else {}),
            "cost": self.cost
            | {
                "upload_bytes_per_round": self.upload_bytes / rounds,
                "download_bytes_per_round": self.download_bytes / rounds,
                "setup_upload_bytes": self.setup_upload_bytes,
                "upload_bytes": self.setup_upload_bytes + self.upload_bytes,
                "download_bytes": self.download_bytes,
                "skipped_steps": self.skipped_steps,
                "images_trained": self.images_trained,
                "flops_per_image": self.flops_per_image,
                "fit_seconds": self.fit_seconds,
                "total_seconds": total_seconds,
                "resumed_after_round": self.resumed_after_round,
                "peak_memory_bytes": max(self.peak_memory_bytes, peak_memory_bytes or 0) or None,
            },
        }

    @property
    def prior(self) -> str:
        """The class prior of all metrics but those at stated priors."""
        return str(self.protocol.get("prior", PRIOR))

    def _stated(self, at: _Evaluated) -> dict[str, Any]:
        """Return the metrics at stated class priors of an evaluation."""
        stated = {split: of_stated(models, self._held_out) for split, models in at.evaluation.items()}
        return {"round": at.round, **stated}

    def _sizes(self, split: str) -> dict[str, int]:
        return {site: counts[split] for site, counts in self.protocol["samples"].items()}

    def _models(self, evaluation: Mapping[str, Any], split: str) -> dict[str, Any]:
        sizes = self._sizes(split)
        return {model: of_model(clients, sizes, self._held_out) for model, clients in evaluation[split].items()}

    def _trained(self, last: _Evaluated) -> dict[str, Any] | None:
        if not last.trained:
            return None
        when = "after the local fit of this round, before its merge, clients that took part"
        return {"round": last.round, "when": when, "personal": over_clients(last.trained, self._sizes("test"))}

    def _best_on_validation(self) -> dict[str, Any] | None:
        best = self._last.or_better(self._best_before)
        if best.score is None:
            return None
        return {
            "round": best.round,
            "finetuned": best.finetuned,
            "validation_score": best.score,
            **self._models(best.evaluation, "test"),
            "validation": self._models(best.evaluation, "validation"),
            "warnings": self._warnings.at(best.round, best.evaluation),
        }

    def _all_warnings(self) -> list[dict[str, Any]]:
        """Return the warnings that hold at the last evaluation, and one if no round is better than the start."""
        best, last = self._last.or_better(self._best_before), self._last
        if best.score is None or best.round or not last.round or not best.is_comparable(last):
            return self._warnings.current
        sizes = self._sizes("validation")
        images = sum(sizes[site] for site in best.scores)
        return [start_is_best(last.round, best.score, last.score, images), *self._warnings.current]

    def _logged(self, evaluation: Mapping[str, Any]) -> dict[str, float]:
        logged: dict[str, float] = {}
        for split, models in evaluation.items():
            for model, clients in models.items():
                group = "federation" if model == "personal" else model
                means = of_model(clients, self._sizes(split), self._held_out)["mean"]
                logged |= {f"{group}/{split}/{m}": v for m, v in means.items() if v is not None}
            for name, found in models["personal"].items():
                logged |= {f"client/{name}/{split}/{m}": v for m, v in found.metrics.items() if v is not None}
        return logged


def of_model(
    clients: Mapping[str, Evaluated], samples: Mapping[str, int], held_out: Collection[str] = ()
) -> dict[str, Any]:
    """Return the metrics of one model over clients (see `over_clients`), and `counts` by client.

    Args:
        clients: metrics and counts by client name.
        samples: number of samples of the split by client name. A client that is not in `clients` could not be
            evaluated: its metrics are None, so that no mean contains it, and `not_evaluated` names it.
        held_out: clients that never train, which means leave out.
    """
    found = {name: of.metrics for name, of in clients.items()}
    missing = sorted(samples.keys() - found.keys())
    unknown: Metrics = dict.fromkeys(next(iter(found.values())))
    metrics = over_clients(found | dict.fromkeys(missing, unknown), samples, held_out)
    counts = {name: clients[name].counts for name in sorted(clients)}
    return metrics | {"counts": counts} | ({"not_evaluated": missing} if missing else {})


def of_stated(models: Mapping[str, Mapping[str, Evaluated]], held_out: Collection[str] = ()) -> dict[str, Any]:
    """Return the metrics of each model at stated class priors over clients; see `stated_over_clients`."""
    return {
        model: stated_over_clients({name: found.at_priors for name, found in clients.items()}, held_out)
        for model, clients in models.items()
    }
