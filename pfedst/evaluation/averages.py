"""Names of metrics, and their averages over clients. This module does not import torch: reports read it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

METRICS = ("balanced_accuracy", "auroc", "macro_f1", "accuracy")
CALIBRATION = ("ece", "classwise_ece")
"""Lower is better."""
GRADING_METRICS = ("auroc_ovo", "quadratic_kappa")
"""Additional metrics for classes that are grades, as reported for the grading of retinopathy."""
SITE_METRICS = ("balanced_accuracy", "auroc", "accuracy")
"""Metrics that have an interval at each site, and of each subgroup of its images."""
CLASS_METRICS = ("sensitivity", "specificity", "average_precision")
"""Metrics of one class against the others; the sensitivity of a class is its recall."""
Metrics = dict[str, float | None]
"""Metric name -> value in [0, 1] (the kappa in [-1, 1]), or None if it is not defined."""


def metric_names(ordinal: bool) -> tuple[str, ...]:
    """Return the names of all metrics of a client; `ordinal`: the classes are grades."""
    return (*METRICS, *CALIBRATION, *(GRADING_METRICS if ordinal else ()))


def over_clients(
    clients: Mapping[str, Metrics], samples: Mapping[str, int], held_out: Collection[str] = ()
) -> dict[str, object]:
    """Return `clients`, and the `mean`, `weighted_mean`, `worst` and `std` over clients for which a metric is defined.

    Args:
        clients: metrics by client name.
        samples: number of evaluated samples by client name, used as weights.
        held_out: clients that never train: the columns leave them out, and `held_out_mean` is their own mean.

    Returns:
        The summary; `held_out_mean` only if there are such clients. `std` is the population standard deviation over
            clients. Clients are summed in the order of their names, so that their order in a configuration does not
            change a bit.
    """
    summary: dict[str, object] = {"clients": {name: clients[name] for name in sorted(clients)}}
    counted = sorted(name for name in clients if name not in held_out)
    columns: dict[str, Metrics] = {"mean": {}, "weighted_mean": {}, "worst": {}, "std": {}}
    graded = [metric for metric in GRADING_METRICS if any(metric in metrics for metrics in clients.values())]
    for metric in (*METRICS, *CALIBRATION, *graded):
        found = [(clients[n][metric], samples[n]) for n in counted if clients[n][metric] is not None]
        values = [float(value) for value, _ in found if value is not None]
        if not values:
            for column in columns.values():
                column[metric] = None
            continue
        mean = math.fsum(values) / len(values)
        weights = [weight for _, weight in found]
        columns["mean"][metric] = mean
        columns["weighted_mean"][metric] = math.fsum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
        columns["worst"][metric] = max(values) if metric in CALIBRATION else min(values)
        columns["std"][metric] = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
    if apart := {name: metrics for name, metrics in clients.items() if name in held_out}:
        columns["held_out_mean"] = over_clients(apart, samples)["mean"]  # type: ignore[assignment]  # of metrics
    return summary | columns
