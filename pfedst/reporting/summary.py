"""The summary of a run: its numbers, and the protocol without which they mean nothing."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from pfedst.data import FederatedDataModule
from pfedst.data.sites import SPLITS
from pfedst.evaluation import Metrics, over_clients
from pfedst.federation import Federation
from pfedst.tracking import parameters_sent, parameters_trained

SELECTION_METRIC = "balanced_accuracy"


def describe(
    federation: Federation, data: FederatedDataModule, local_epochs: int, participation: float, rounds: int
) -> dict[str, Any]:
    """The protocol of a run, before its first round."""
    client, method = federation.generic, federation.method
    finetuning = method.finetune_epochs if federation.trains else 0
    return {
        "method": type(method).__name__,
        "method_options": method.options,
        "adapter": type(client.adapter).__name__,
        "anchors": client.anchors or "none",
        "encoder": federation.encoder.label,
        "random_weights": federation.encoder.random_weights,
        "data": data.label,
        "data_audit": data.report.summary() if data.report else None,
        "cache": "none" if data.store is None else f"{data.store.layout.kind}, {data.store.layout.dtype}",
        "classes": list(federation.class_names),
        "clients": "all",
        "samples": {site: {split: data.samples(site, split) for split in SPLITS} for site in federation.clients},
        "seed": federation.run_seed,
        "seeds": 1,
        "rounds": rounds if federation.trains else 0,
        "round": 0,
        "local_epochs": local_epochs,
        "participation": participation,
        "held_out_sites": list(federation.held_out),
        "weighting": method.weighting,
        "split": "test",
        "when": (
            f"after the last merge and {finetuning} local fine-tuning epochs"
            if finetuning
            else "after the last merge, before local training (`received`)"
        ),
        "personal": "merged shared tensors with the client's own personal tensors",
        "generic": "merged shared tensors with personal tensors at their start: what a new client gets",
        "selection": f"none: the last round; best_on_validation takes the round with the highest mean validation "
        f"{SELECTION_METRIC} of the personal model, and its test metrics are only reported",
        "averaging": "macro metrics over the classes present in a client's targets; std is the population's",
        "parameters_trained": parameters_trained(client),
        "parameters_sent": parameters_sent(client),
    }


class RunSummary:
    """Collects what `summary.json` holds, round by round.

    Args:
        protocol: what `describe` gave.
    """

    def __init__(self, protocol: dict[str, Any]) -> None:
        self.cost = {key: protocol.pop(key) for key in ("parameters_trained", "parameters_sent")}
        self.protocol = protocol
        self.last_round = 0
        self.setup_upload_bytes = 0
        self.resumed_after_round: int | None = None
        self.received: dict[int, Mapping[str, Any]] = {}
        self.trained: dict[int, dict[str, Metrics]] = {}
        self.bytes: list[tuple[int, int]] = []
        self.fit_seconds = 0.0
        self.peak_memory_bytes = 0

    def add_round(
        self, round_number: int, records: Mapping[str, dict[str, Any]], evaluation: Mapping[str, Any]
    ) -> dict[str, float]:
        """Take a round's records and evaluation (empty if not evaluated); the metrics that loggers see."""
        self.last_round = round_number
        if records:
            self.bytes.append(
                (
                    sum(record["upload_bytes"] for record in records.values()),
                    sum(record["download_bytes"] for record in records.values()),
                )
            )
        self._add_cost(records)
        logged = {f"client/{name}/train_loss": float(record["train_loss"]) for name, record in records.items()}
        if not evaluation:
            return logged
        self.received[round_number] = evaluation
        self.trained[round_number] = {
            name: record["trained"]["test"]["personal"] for name, record in records.items() if "trained" in record
        }
        return logged | self._logged(evaluation)

    def add_finetuned(self, evaluation: Mapping[str, Any], records: Mapping[str, dict[str, Any]]) -> None:
        """Take the evaluation after fine-tuning, which replaces that after the last merge."""
        self.received[self.last_round] = evaluation
        self._add_cost(records)

    def _add_cost(self, records: Mapping[str, dict[str, Any]]) -> None:
        self.fit_seconds += sum(record["fit_seconds"] for record in records.values())
        peaks = [record["peak_memory_bytes"] or 0 for record in records.values()]
        self.peak_memory_bytes = max([self.peak_memory_bytes, *peaks])

    def result(self, name: str, total_seconds: float, peak_memory_bytes: int | None) -> dict[str, Any]:
        """Everything, ready for JSON.

        Args:
            name: of the run.
            total_seconds: of the run; of one that was resumed, since then.
            peak_memory_bytes: of this process; what is told is the highest of any process that trained.
        """
        last = max(self.received)
        rounds = max(1, len(self.bytes))
        return {
            "name": name,
            "protocol": self.protocol | {"round": last},
            **self._models(self.received[last], "test"),
            "best_on_validation": self._best_on_validation(),
            "trained": self._trained(last),
            "cost": self.cost
            | {
                "upload_bytes_per_round": sum(up for up, _ in self.bytes) / rounds,
                "download_bytes_per_round": sum(down for _, down in self.bytes) / rounds,
                "setup_upload_bytes": self.setup_upload_bytes,
                "fit_seconds": self.fit_seconds,
                "total_seconds": total_seconds,
                "resumed_after_round": self.resumed_after_round,
                "peak_memory_bytes": max(self.peak_memory_bytes, peak_memory_bytes or 0) or None,
            },
        }

    def _sizes(self, split: str) -> dict[str, int]:
        return {site: counts[split] for site, counts in self.protocol["samples"].items()}

    def _models(self, evaluation: Mapping[str, Any], split: str) -> dict[str, Any]:
        return {model: over_clients(clients, self._sizes(split)) for model, clients in evaluation[split].items()}

    def _trained(self, round_number: int) -> dict[str, Any] | None:
        clients = self.trained.get(round_number)
        if not clients:
            return None
        when = "after the local fit of this round, before its merge, clients that took part"
        return {"round": round_number, "when": when, "personal": over_clients(clients, self._sizes("test"))}

    def _best_on_validation(self) -> dict[str, Any] | None:
        scores: dict[int, float] = {}
        for round_number, evaluation in self.received.items():
            found = [m[SELECTION_METRIC] for _, m in sorted(evaluation["validation"]["personal"].items())]
            values = [value for value in found if value is not None]
            if values:
                scores[round_number] = fmean(values)
        if not scores:
            return None
        best = max(scores, key=lambda round_number: (scores[round_number], -round_number))
        return {"round": best, "validation_score": scores[best], **self._models(self.received[best], "test")}

    def _logged(self, evaluation: Mapping[str, Any]) -> dict[str, float]:
        logged: dict[str, float] = {}
        for split, models in evaluation.items():
            for model, clients in models.items():
                group = "federation" if model == "personal" else model
                means = over_clients(clients, self._sizes(split))["mean"]
                assert isinstance(means, dict)
                logged |= {f"{group}/{split}/{m}": v for m, v in means.items() if v is not None}
            for name, metrics in models["personal"].items():
                logged |= {f"client/{name}/{split}/{m}": v for m, v in metrics.items() if v is not None}
        return logged
