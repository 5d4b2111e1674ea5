"""Metrics of logits at a stated class prior."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pfedst.evaluation.counts import calibration_error
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
    logits, classes = logits.double(), logits.shape[1]
    logarithms = logits.log_softmax(1)
    probabilities = logarithms.exp()
    confidence, predicted = probabilities.max(1)
    confusion = torch.bincount(targets * classes + predicted, minlength=classes**2).reshape(classes, classes).double()
    right, images, predictions = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    present = images > 0
    truth = torch.nn.functional.one_hot(targets, classes)
    found = {
        "balanced_accuracy": float((right / images)[present].mean()),
        "accuracy": float(right.sum() / images.sum()),
        "macro_f1": float((2 * right / (images + predictions))[present].mean()),
        "ece": calibration_error(confidence, predicted == targets),
        "nll": -float(logarithms.gather(1, targets[:, None]).mean()),
        "brier": float((probabilities - truth).square().sum(1).mean()),
    }
    return {metric: found[metric] if math.isfinite(found[metric]) else None for metric in STATED[prior]}
