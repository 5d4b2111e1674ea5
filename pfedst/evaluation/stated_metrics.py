"""Metrics of logits at a stated class prior."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pfedst.evaluation.metrics import predicted_metrics
from pfedst.evaluation.stated import STATED


def stated_metrics(logits: Tensor, targets: Tensor, prior: str) -> dict[str, float | None]:
    """Return the metrics of `STATED[prior]`.

    Args:
        logits: (N, K), at that prior.
        targets: (N,) class indices.
        prior: `balanced`, `site` or `federation`.

    Returns:
        Of `balanced_accuracy`, `accuracy`, `macro_f1`, `ece`: as `classification_metrics`, over the classes present.
            `nll`: mean negative logarithm of the probability of the class, in nats. `brier`: mean over images of the
            squared distance of the probabilities to 1 for the class and 0 for the others, summed over classes, in
            [0, 2] (Brier 1950). All None without images, and those of probabilities None if a logit is NaN.
    """
    if not len(targets):
        return dict.fromkeys(STATED[prior])
    logarithms = logits.double().log_softmax(1)
    probabilities = logarithms.exp()
    truth = torch.nn.functional.one_hot(targets, logits.shape[1])
    found = predicted_metrics(probabilities, targets) | {
        "nll": -float(logarithms.gather(1, targets[:, None]).mean()),
        "brier": float((probabilities - truth).square().sum(1).mean()),
    }
    return {metric: found[metric] if math.isfinite(found[metric]) else None for metric in STATED[prior]}
