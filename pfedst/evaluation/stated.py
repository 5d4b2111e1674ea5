"""Metrics at stated class priors: their names, why they may be missing, and their means. This module imports no torch.

Balanced accuracy is best predicted as if classes were equally frequent; accuracy and calibration are those of a
hospital with its own frequencies. Both come from one model, by one shift of its logits each, and no number is read
without its prior.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

BALANCED, SITE, FEDERATION = "balanced", "site", "federation"
OF_A_HOSPITAL = ("accuracy", "macro_f1", "ece", "nll", "brier")
STATED: dict[str, tuple[str, ...]] = {
    BALANCED: ("balanced_accuracy",),
    SITE: OF_A_HOSPITAL,
    FEDERATION: OF_A_HOSPITAL,
}
"""The metrics at each prior: all classes alike; the frequencies of the site's training split; the mean of those over
sites, by the weights of the merge, for a model that is the same at all sites."""
REASON = "reason"
NOT_SHARED = "class counts are not shared"
NO_PRIOR = "the loss has no class prior"
NO_TRAINING_IMAGES = "the site has no training images"
REASONS = (NOT_SHARED, NO_PRIOR, NO_TRAINING_IMAGES)
"""Why there are no metrics at a prior: the frequencies that the model has learned, or those of the site, are not
known."""
Stated = dict[str, dict[str, Any]]
"""Prior -> metric -> value (None without images), or prior -> `reason` -> one of `REASONS`."""


def stated_over_clients(clients: Mapping[str, Stated], held_out: Collection[str] = ()) -> dict[str, Any]:
    """Return for each prior `clients`, and the `mean` of each metric over clients for which it is defined.

    Args:
        clients: by name; empty for a client that reported nothing, as those of older versions.
        held_out: clients that never train: means leave them out.
    """
    found: dict[str, Any] = {}
    for prior, metrics in STATED.items():
        of_prior = {name: clients[name][prior] for name in sorted(clients) if prior in clients[name]}
        if not of_prior:
            continue
        counted = [table for name, table in of_prior.items() if name not in held_out]
        mean: dict[str, float | None] = {}
        for metric in metrics:
            values = [float(table[metric]) for table in counted if table.get(metric) is not None]
            mean[metric] = math.fsum(values) / len(values) if values else None
        found[prior] = {"clients": of_prior, "mean": mean}
    return found
