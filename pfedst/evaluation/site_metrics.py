"""Accuracy, balanced accuracy and AUROC of one model on some images of a site, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pfedst.evaluation.averages import SITE_METRICS
from pfedst.evaluation.bootstrap import (
    FEWEST_UNITS,
    Drawn,
    Estimate,
    Integers,
    Numbers,
    Ranking,
    draw,
    once,
    shares,
    with_interval,
)


def site_metrics(models: Mapping[str, Numbers], targets: Integers, units: Integers, seed: int) -> dict[str, Any]:
    """Return what each model reaches on some images of a site.

    Balanced accuracy and AUROC are means over the classes that are present, also in each resample. A class of few
    patients is missing in many resamples, and has the same recall in the others: the interval is too narrow then.

    Args:
        models: by name the probabilities (N, K) of a model, rows sum to one. NaN counts as zero.
        targets: (N,) class indices.
        units: (N,) the number of the patient or lesion of each image; any numbers.
        seed: of the resamples, which all models share.

    Returns:
        `images` and `units`: their numbers; `classes`: number of classes that are present, and `rare_classes`: of those
            among them with fewer than `FEWEST_UNITS` units; and for each model the estimate of each of `SITE_METRICS`.
    """
    numbers = np.unique(units, return_inverse=True)[1].reshape(-1).astype(np.int64)
    drawn = draw(int(numbers.max()) + 1 if len(numbers) else 0, seed)
    of_class = [len(np.unique(numbers[targets == label])) for label in np.unique(targets)]
    return {
        "images": len(targets),
        "units": drawn.shape[1],
        "classes": len(of_class),
        "rare_classes": sum(number < FEWEST_UNITS for number in of_class),
        **{name: _of_model(np.nan_to_num(found), targets, numbers, drawn) for name, found in models.items()},
    }


def _of_model(probabilities: Numbers, targets: Integers, units: Integers, drawn: Drawn) -> dict[str, Estimate]:
    if not len(targets):
        return {metric: {"value": None, "low": None, "high": None} for metric in SITE_METRICS}
    right = probabilities.argmax(1) == targets
    present = np.unique(targets)
    ranked = [Ranking(probabilities[:, label], targets == label, units) for label in present]

    def accuracy(drawn: Drawn) -> Numbers:
        return shares(right, np.ones_like(right), units, drawn)

    def balanced_accuracy(drawn: Drawn) -> Numbers:
        return _mean([shares(right & (targets == label), targets == label, units, drawn) for label in present])

    def auroc(drawn: Drawn) -> Numbers:
        return _mean([ranking.auroc(drawn) for ranking in ranked])

    found = {"balanced_accuracy": balanced_accuracy, "auroc": auroc, "accuracy": accuracy}

    def estimate(metric: str) -> Estimate:
        resampled = found[metric]
        return with_interval(resampled(once(drawn))[0], drawn.shape[1], lambda: resampled(drawn))

    return {metric: estimate(metric) for metric in SITE_METRICS}


def _mean(of_classes: list[Numbers]) -> Numbers:
    """Return the mean over the classes that are defined in each resample; NaN where none is."""
    values = np.stack(of_classes)
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(defined, values, 0).sum(0) / defined.sum(0))
